"""Train Mask R-CNN with MSVMamba-Nano on the bundled photographs, test it, and draw what it found.

Everything runs through the commands that users run, ``mim train mmdet`` and ``mim test mmdet``. The network learns the
photographs by heart, on purpose: that shows within minutes, on a CPU, that training works from end to end. What it
makes of photographs that it never saw is in the table too.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import load
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import save_checkpoint, set_random_seed
from mmengine.structures import InstanceData
from pycocotools import mask as rle

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/mask_rcnn/msvmamba_n_coco_mini.py"
# Of all that the OpenMMLab tools print, how far they are, how long it will take, and the loss.
PROGRESS = re.compile(r"Epoch\((\w+)\) *(\S.*?\]) .*?eta: (\S+)(?:.* (loss: \S+))?")
METRICS = ("bbox_mAP", "bbox_mAP_50", "segm_mAP", "segm_mAP_50")
SCORE = 0.5
# A network that learnt its photographs by heart is well above; one that learnt nothing is at 0.
WANTED = 0.30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/demo"), help="folder for checkpoints and pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    MMLogger.get_instance("demo", log_level="ERROR")  # what this process itself builds is of no interest

    step(1, "the data")
    cfg = Config.fromfile(CONFIG)
    init_default_scope(cfg.default_scope)
    seen = count_boxes(DATASETS.build(cfg.train_dataloader.dataset))
    print(f"{seen['images']} photographs with objects: {seen['boxes']} boxes and masks")

    step(2, "the untrained network, on the photographs it is going to learn")
    before = evaluate(save_untrained(cfg, out / "untrained.pth"), out / "before")

    step(3, "training, about 6 minutes on two CPU cores, several times that where other programs use them")
    mim("train", [], out / "train")
    losses = check_losses(read_losses(out / "train"))

    step(4, "the trained network, on the photographs it learnt, then on others")
    checkpoint = Path(os.path.relpath((out / "train/last_checkpoint").read_text().strip()))
    learnt = evaluate(checkpoint, out / "after")
    unseen = evaluate(checkpoint, out / "unseen", validation_data(cfg))

    step(5, "a picture of each photograph")
    pictures = draw(cfg, learnt["predictions"], out / "pictures")

    report = table(
        losses,
        {
            "untrained": before,
            "trained, on the photographs it learnt": learnt,
            "trained, on photographs it never saw": unseen,
        },
    )
    (out / "report.md").write_text(report)
    print(f"\n{report}\nThis table: {out / 'report.md'}\nPictures: {pictures}")
    print(f"Took {(time.monotonic() - started) / 60:.1f} minutes.")
    if learnt["segm_mAP_50"] < WANTED:
        sys.exit(f"mask AP50 is {learnt['segm_mAP_50']:.3f} on the photographs it learnt, expected {WANTED} or more")


def step(number: int, title: str) -> None:
    print(f"\n[{number}/5] {title}", flush=True)


def count_boxes(dataset: BaseDataset) -> dict[str, int]:
    """Load every training photograph, and count what the network is going to see.

    Raises:
        ValueError: A photograph has no box, or one that training would ignore. mmdet marks RLE instances as ignored
            without a word when masks are loaded with ``poly2mask=False``, and then trains on empty pictures.
    """
    boxes = 0
    for i in range(len(dataset)):
        sample = dataset[i]["data_samples"]
        used, ignored = len(sample.gt_instances), len(sample.ignored_instances)
        if used == 0 or ignored:
            raise ValueError(
                f"{sample.img_path}: {used} boxes to learn from and {ignored} ignored, expected at least one and none. "
                "RLE masks need LoadAnnotations with poly2mask=True"
            )
        boxes += used
    if not boxes:
        raise ValueError(f"the data set at {dataset.data_root} holds no photograph")
    return {"images": len(dataset), "boxes": boxes}


def save_untrained(cfg: Config, path: Path) -> Path:
    """Save the network as training starts from it."""
    set_random_seed(cfg.randomness.seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    save_checkpoint({"state_dict": model.state_dict(), "meta": {}}, str(path))
    return path


def mim(command: str, arguments: list[str], work_dir: Path) -> None:
    """Run ``mim train|test mmdet CONFIG ARGUMENTS``, show its progress, and keep all it prints in a log.

    Raises:
        SystemExit: The command failed; its last lines are shown.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    words = [command, "mmdet", os.path.relpath(CONFIG), "--work-dir", str(work_dir), *arguments]
    print(f"$ mim {shlex.join(words)}", flush=True)
    lines = []
    with (
        (work_dir / "mim.log").open("w") as log,
        subprocess.Popen(
            [str(Path(sys.executable).with_name("mim")), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            log.write(line)
            lines.append(line)
            if match := PROGRESS.search(line):
                phase, place, eta, loss = match.groups(default="")
                print(f"  {phase:5} {place:13} {eta} to go  {loss}".rstrip(), flush=True)
    if process.returncode:
        sys.exit(f"{''.join(lines[-30:])}\nmim {command} failed; all that it printed is in {work_dir / 'mim.log'}")


def evaluate(checkpoint: Path, work_dir: Path, arguments: Sequence[str] = ()) -> dict:
    """Test a checkpoint; return its metrics under mmdet's names, and its ``predictions``."""
    out = work_dir / "predictions.pkl"
    mim("test", ["--checkpoint", str(checkpoint), "--out", str(out), *arguments], work_dir)
    metrics = json.loads(max(work_dir.glob("*/*.json")).read_text())
    predictions = load(str(out))
    # Of a network that finds nothing at all mmdet reports no AP; that is an AP of 0.
    if not any(len(prediction["pred_instances"]["scores"]) for prediction in predictions):
        metrics = {f"coco/{name}": 0.0 for name in METRICS}
    result = {name: metrics[f"coco/{name}"] for name in METRICS}
    print("  " + ", ".join(f"{name} {value:.3f}" for name, value in result.items()), flush=True)
    return {**result, "predictions": predictions}


def validation_data(cfg: Config) -> list[str]:
    """Let ``mim test`` read the photographs that the config keeps for validation."""
    dataset = cfg.val_dataloader.dataset
    return [
        "--cfg-options",
        f"test_dataloader.dataset.ann_file={dataset.ann_file}",
        f"test_dataloader.dataset.data_prefix.img={dataset.data_prefix.img}",
        f"test_evaluator.ann_file={cfg.val_evaluator.ann_file}",
    ]


def read_losses(work_dir: Path) -> list[dict]:
    """Read what the latest run in ``work_dir`` logged of its training iterations."""
    records = [json.loads(line) for line in max(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    return [record for record in records if "loss" in record]


def check_losses(records: list[dict]) -> tuple[float, float]:
    """Return the first and the last logged loss, when these belong to a run that learns.

    Raises:
        ValueError: The network saw no boxes, or the loss is not finite, or did not fall.
    """
    if not any(record["loss_bbox"] > 0 and record["loss_mask"] > 0 for record in records):
        raise ValueError("the losses of boxes or masks were 0 throughout: the network saw none, and learnt nothing")
    first, last = records[0]["loss"], records[-1]["loss"]
    if not last < first:
        raise ValueError(f"the loss did not fall: {first:.3f} at first, {last:.3f} at last")
    return first, last


def draw(cfg: Config, predictions: list[dict], folder: Path) -> Path:
    """Draw each test photograph, what is on it, and what was found on it, side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message=".*out of bounds", module="mmengine.visualization")  # at the very border
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    found = {prediction["img_id"]: prediction["pred_instances"] for prediction in predictions}
    visualizer = DetLocalVisualizer(line_width=2, alpha=0.5)
    visualizer.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        sample = dataset[i]["data_samples"]
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor
        sample.pred_instances = confident(found[sample.img_id], sample.ori_shape)
        photograph = plt.imread(sample.img_path)
        if photograph.ndim == 2:
            photograph = np.stack([photograph] * 3, axis=-1)
        panels = {
            "photograph": photograph,
            f"ground truth: {len(sample.gt_instances)}": panel(visualizer, photograph, sample, truth=True),
            f"found (score over {SCORE}): {len(sample.pred_instances)}": panel(
                visualizer, photograph, sample, truth=False
            ),
        }
        figure, axes = plt.subplots(1, 3, figsize=(15, 5 * photograph.shape[0] / photograph.shape[1] + 0.4))
        for axis, (title, image) in zip(axes, panels.items(), strict=True):
            axis.imshow(image)
            axis.set_title(title)
            axis.axis("off")
        figure.tight_layout()
        figure.savefig(folder / f"{Path(sample.img_path).stem}.png", dpi=90)
        plt.close(figure)
    return folder


def confident(instances: dict, shape: tuple[int, int]) -> InstanceData:
    """Keep the instances with a score over ``SCORE``, and unpack their masks."""
    kept = (instances["scores"] > SCORE).nonzero().flatten().tolist()
    masks = [rle.decode(instances["masks"][i]).astype(bool) for i in kept]
    return InstanceData(
        bboxes=instances["bboxes"][kept],
        labels=instances["labels"][kept],
        scores=instances["scores"][kept],
        masks=np.stack(masks) if masks else np.zeros((0, *shape), bool),
    )


def panel(visualizer: DetLocalVisualizer, photograph: np.ndarray, sample: DetDataSample, truth: bool) -> np.ndarray:
    visualizer.add_datasample("panel", photograph, sample, draw_gt=truth, draw_pred=not truth, pred_score_thr=SCORE)
    return visualizer.get_image()


def table(losses: tuple[float, float], results: dict[str, dict]) -> str:
    """Write the report in Markdown."""
    lines = [
        "# Mask R-CNN, MSVMamba-Nano, bundled photographs",
        "",
        f"Loss: {losses[0]:.2f} at first, {losses[1]:.2f} at last. The network learnt its photographs by heart, on",
        "purpose; only the last row shows what that is worth on others, for which they are far too few.",
        "",
        "| | box AP | box AP50 | mask AP | mask AP50 |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {' | '.join(f'{result[m]:.3f}' for m in METRICS)} |" for name, result in results.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
