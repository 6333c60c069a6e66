"""Draw the samples of a config's data set, as training or testing gets them, with their ground truth.

    python tools/browse.py configs/mask_rcnn/msvmamba_n_coco_mini.py
    python tools/browse.py configs/upernet/msvmamba_t_160k.py --split val --number 50 --output-dir pictures

It takes configs of mmdet, mmseg and mmpretrain, and needs no display. What is drawn went through the whole pipeline, so
augmentations are in it.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.structures import BaseDataElement

# Of each library, the method of its visualizer that draws a sample.
DRAW = {"mmdet": "add_datasample", "mmseg": "add_datasample", "mmpretrain": "visualize_cls"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="path of a config of mmdet, mmseg or mmpretrain")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="whose data (%(default)s)")
    parser.add_argument("--number", type=int, default=20, help="how many samples, from the first on (%(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path("work_dirs/browse"), help="folder (%(default)s)")
    args = parser.parse_args()
    if args.number < 1:
        parser.error(f"--number is {args.number}, expected at least 1")
    try:
        cfg = Config.fromfile(args.config)
        paths = list(draw(cfg, args.split, args.number, args.output_dir))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{len(paths)} pictures in {args.output_dir}")


def draw(cfg: Config, split: str, number: int, folder: Path) -> Iterator[Path]:
    """Draw samples into ``folder``, one JPEG each; yield their paths.

    Args:
        cfg: The config.
        split: ``'train'``, ``'val'`` or ``'test'``.
        number: How many, at most.
        folder: Made where it is missing.

    Raises:
        OSError: Images or annotations are missing.
        ValueError: The config is of no known library, or has no data loader for the split, or no visualizer.
    """
    library, loader = cfg.get("default_scope"), cfg.get(f"{split}_dataloader")
    if library not in DRAW:
        raise ValueError(f"default_scope of this config is {library!r}, expected {', '.join(DRAW)}")
    if loader is None or "visualizer" not in cfg:
        raise ValueError(f"this config has no {'visualizer' if loader else f'{split}_dataloader'}")
    init_default_scope(library)
    dataset = DATASETS.build(loader.dataset)
    visualizer = VISUALIZERS.build({"name": "browse", **cfg.visualizer, "vis_backends": None})
    visualizer.dataset_meta = dataset.metainfo
    for i in range(min(number, len(dataset))):
        item = dataset[i]
        sample = _on_arrays(item["data_samples"])
        # One picture may be there many times, cut in other ways.
        path = folder / f"{i:04d}_{Path(sample.get('img_path')).stem}.jpg"
        # OpenCV, which writes the labels, wants contiguous memory; pipelines leave colours as BGR.
        image = np.ascontiguousarray(item["inputs"].numpy()[::-1].transpose(1, 2, 0))
        getattr(visualizer, DRAW[library])(
            image=image, data_sample=sample, draw_pred=False, name=path.stem, out_file=str(path)
        )
        yield path


def _on_arrays(sample: BaseDataElement) -> BaseDataElement:
    """Return the sample with arrays in the place of tensors, and of mmdet's boxes, as the visualizers want it."""
    if "gt_instances" in sample:
        instances = sample.get("gt_instances")
        instances.bboxes = instances.bboxes.tensor
    return sample.numpy()


if __name__ == "__main__":
    main()
