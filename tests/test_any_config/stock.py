"""The stock configs of docs/use_in_your_config.md, made small."""

from pathlib import Path

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from tests.test_docs.pages import ROOT, blocks

STOCK = [block.code for block in blocks(Path("docs/use_in_your_config.md")) if "_base_" in block.code]
BUNDLED = {"mmdet": "coco_mini_instance", "mmseg": "coco_mini_semantic", "mmpretrain": "clothing_mini"}
# The stages keep their channels, which the configs name; a path that is dropped would get no gradient.
SMALL = {"arch": {"base": "tiny", "depths": (1, 1, 1, 1)}, "drop_path_rate": 0.0}
SIZES = {
    **dict.fromkeys(("scale", "crop_size", "size"), (128, 128)),
    # RoIs: as many as are sampled and kept, and the width of what they go through.
    **dict.fromkeys(("num", "max_per_img", "fc_out_channels"), 64),
}


def stock(name: str) -> str:
    """Return the block whose base is a config of this name."""
    (code,) = (code for code in STOCK if f"/{name}" in code)
    return code


def small_config(code: str, folder: Path) -> Config:
    """Read a config as MMEngine does, with one block a stage, small pictures, and the bundled data for a data set."""
    # In the maintained fork of OpenMMLab `mmseg::` is found once this was read.
    Config.fromfile(ROOT / "configs/_base_/engine.py")
    path = folder / "config.py"
    path.write_text(code)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.update(SMALL)
    data = Config.fromfile(ROOT / f"configs/_base_/{BUNDLED[cfg.default_scope]}.py")
    cfg.train_dataloader, cfg.test_dataloader = data.train_dataloader, data.test_dataloader
    cfg.train_dataloader.batch_size = 2
    if cfg.default_scope == "mmpretrain":
        # Its own training script puts them together.
        cfg.model.data_preprocessor = cfg.data_preprocessor
    else:
        _replace([cfg.model, cfg.train_dataloader, cfg.test_dataloader], SIZES)
    if cfg.default_scope == "mmseg":
        cfg.test_dataloader.dataset.pipeline.insert(1, {"type": "Resize", "scale": (128, 128), "keep_ratio": True})
    return cfg


def build(cfg: Config) -> BaseModel:
    """Make the model of a config, with its initial values."""
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def batch(dataloader: dict) -> dict:
    """Read the first batch of a data loader."""
    return next(iter(Runner.build_dataloader(dataloader, seed=0)))


def _replace(node: object, values: dict[str, object]) -> None:
    """Set ``values`` wherever their keys are, at any depth."""
    children = node if isinstance(node, list) else node.values() if isinstance(node, dict) else ()
    if isinstance(node, dict):
        node.update({key: value for key, value in values.items() if key in node})
    for child in children:
        _replace(child, values)
