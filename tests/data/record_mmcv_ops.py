"""Record what the compiled mmcv computes, for tests/test_environment/test_mmcv_ops.py.

Run once, in an environment that holds the compiled mmcv 2.1.0: ``python tests/data/record_mmcv_ops.py``.
Writes ``mmcv_ops.pt`` beside itself: for each op a list of cases (what went in, what came out), on a CPU.
"""

import itertools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import mmcv
import torch
from mmcv.ops import batched_nms, nms, roi_align
from torch import Tensor


def clustered_boxes(generator: torch.Generator, clusters: int, per_cluster: int) -> tuple[Tensor, Tensor]:
    """Boxes that overlap in groups, with scores of which no two are equal."""
    centres = torch.rand(clusters, 1, 2, generator=generator) * 200
    sizes = 20 + torch.rand(clusters, 1, 2, generator=generator) * 60
    centres = centres + torch.randn(clusters, per_cluster, 2, generator=generator) * 6
    sizes = sizes * (0.8 + 0.4 * torch.rand(clusters, per_cluster, 2, generator=generator))
    boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1).flatten(0, 1)
    order = torch.randperm(len(boxes), generator=generator)
    return boxes[order], (torch.randperm(len(boxes), generator=generator) + 1) / (len(boxes) + 1)


def nms_cases(generator: torch.Generator) -> list[dict]:
    boxes, scores = clustered_boxes(generator, clusters=6, per_cluster=10)
    options = [{"iou_threshold": threshold, "offset": offset} for threshold in (0.3, 0.5, 0.7) for offset in (0, 1)]
    options += [
        {"iou_threshold": 0.5, "offset": 0, "score_threshold": 0.3},
        {"iou_threshold": 0.5, "offset": 1, "score_threshold": 0.5, "max_num": 5},
        {"iou_threshold": 0.7, "offset": 0, "max_num": 3},
        {"iou_threshold": 0.5, "offset": 0, "score_threshold": 2.0},
    ]
    cases = [{"boxes": boxes, "scores": scores, "options": option} for option in options]

    # Equal scores. The compiled op sorts with Tensor.sort(), which keeps the order of equal scores in so short a list
    # and gives up on it in longer ones, each processor in its own way: nothing to record there.
    boxes, _ = clustered_boxes(generator, clusters=3, per_cluster=5)
    scores = torch.randint(1, 4, (len(boxes),), generator=generator) / 4
    if not torch.equal(scores.sort(descending=True)[1], scores.sort(descending=True, stable=True)[1]):
        raise RuntimeError("this torch does not keep the order of 15 equal scores: record with fewer boxes")
    for threshold, offset in itertools.product((0.3, 0.5, 0.7), (0, 1)):
        option = {"iou_threshold": threshold, "offset": offset}
        cases.append({"boxes": boxes, "scores": scores, "options": option})

    # Pairs whose IoU is exactly 3/10, 1/2 and 7/10: as the widths are counted with that offset.
    whole = [[0.0, 0.0, 10.0, 1.0]]
    parts = [[0.0, 0.0, width, 1.0] for width in (3.0, 5.0, 7.0)]
    for threshold, (part, offset) in itertools.product((0.3, 0.5, 0.7), itertools.product(parts, (0, 1))):
        pair = torch.tensor([*whole, part])
        pair[:, 2:] -= offset
        cases.append(
            {
                "boxes": pair,
                "scores": torch.tensor([0.9, 0.8]),
                "options": {"iou_threshold": threshold, "offset": offset},
            }
        )

    same = torch.tensor([[5.0, 5.0, 9.0, 9.0]]).repeat(4, 1)
    points = torch.tensor([[5.0, 5.0, 5.0, 5.0]]).repeat(3, 1)  # no area: IoU is 0/0 with offset 0
    for special in (same, points, torch.zeros(0, 4)):
        for offset in (0, 1):
            cases.append(
                {
                    "boxes": special,
                    "scores": torch.full((len(special),), 0.5),
                    "options": {"iou_threshold": 0.5, "offset": offset},
                }
            )
    for case in cases:
        case["dets"], case["kept"] = nms(case["boxes"], case["scores"], **case["options"])
    return cases


def batched_nms_cases(generator: torch.Generator) -> list[dict]:
    boxes, scores = clustered_boxes(generator, clusters=4, per_cluster=12)
    classes = torch.randint(0, 3, (len(boxes),), generator=generator)
    far = torch.randint(0, 3, (len(boxes),), generator=generator) * 400  # class offsets of some 1e5 pixels
    cases = []
    for nms_cfg, class_agnostic, idxs in (
        ({"type": "nms", "iou_threshold": 0.5}, False, classes),
        ({"type": "nms", "iou_threshold": 0.5}, False, far),
        ({"type": "nms", "iou_threshold": 0.5}, True, classes),
        ({"type": "nms", "iou_threshold": 0.7, "max_num": 7}, False, classes),
        ({"type": "nms", "iou_threshold": 0.5, "split_thr": 10}, False, classes),
        ({"type": "nms", "iou_threshold": 0.5, "split_thr": 10, "max_num": 4, "offset": 1}, False, classes),
        (None, False, classes),
    ):
        dets, kept = batched_nms(boxes, scores, idxs, nms_cfg, class_agnostic)
        cases.append(
            {
                "boxes": boxes,
                "scores": scores,
                "idxs": idxs,
                "nms_cfg": nms_cfg,
                "class_agnostic": class_agnostic,
                "dets": dets,
                "kept": kept,
            }
        )
    return cases


def roi_align_cases(generator: torch.Generator) -> list[dict]:
    features = torch.randn(2, 2, 11, 14, generator=generator)
    rois = torch.tensor(
        [
            [0, 3.3, 4.1, 30.7, 27.9],  # inside
            [1, -9.5, -6.2, 21.4, 60.3],  # over three edges
            [0, 70.0, 50.0, 99.0, 90.0],  # beyond the image
            [1, 12.0, 12.0, 12.0, 12.0],  # without area
            [1, 0.0, 0.0, 56.0, 44.0],  # the whole image
        ]
    )
    cases = []
    for dtype, size, scale, sampling_ratio, aligned in [
        *itertools.product([torch.float32], [(7, 7), (14, 14), (3, 5)], [0.25], [0, 2], [True, False]),
        *itertools.product([torch.float64], [(7, 7), (3, 5)], [0.25], [0, 2], [True, False]),
        (torch.float32, (2, 2), 0.3, 0, True),  # a scale that float32 rounds
        (torch.float64, (2, 2), 0.3, 2, True),
        (torch.float32, (1, 1), 1.0, 3, False),
    ]:
        options = {
            "output_size": size,
            "spatial_scale": scale,
            "sampling_ratio": sampling_ratio,
            "pool_mode": "avg",
            "aligned": aligned,
        }
        cases.append(record_roi_align(features, rois, dtype, options))
    cases.append(record_roi_align(features, rois[:0].clone(), torch.float32, options))
    return cases


def record_roi_align(features: Tensor, rois: Tensor, dtype: torch.dtype, options: dict) -> dict:
    inputs = features.to(dtype, copy=True).requires_grad_()
    output = roi_align(inputs, rois.to(dtype), *options.values())
    # The test makes the same gradient: it need not be stored.
    output.backward(torch.cos(torch.arange(output.numel(), dtype=torch.float64)).view_as(output).to(dtype))
    return {
        "input": features,
        "rois": rois,
        "dtype": str(dtype).removeprefix("torch."),
        "options": options,
        "output": output.detach(),
        "grad_input": inputs.grad,
    }


def main() -> None:
    extension = Path(mmcv._ext.__file__).name
    if not any(extension == "_ext" + suffix for suffix in EXTENSION_SUFFIXES):
        raise RuntimeError(f"needs the compiled mmcv, found {extension}")
    generator = torch.Generator().manual_seed(0)
    recorded = {
        "meta": {"mmcv": mmcv.__version__, "torch": str(torch.__version__), "device": "cpu"},
        "nms": nms_cases(generator),
        "batched_nms": batched_nms_cases(generator),
        "roi_align": roi_align_cases(generator),
    }
    path = Path(__file__).with_name("mmcv_ops.pt")
    torch.save(recorded, path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
