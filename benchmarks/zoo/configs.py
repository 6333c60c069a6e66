"""The configs, read and built once.

Models are built in full size without storage and without initial values, so that each takes moments.
"""

from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from mmengine.config import Config, utils
from mmengine.registry import MODELS, init_default_scope
from torch import nn

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*/*.py") if path.parent.name != "_base_")

# For a base of another library MMEngine reads the metafiles of all its configs, each time.
_read_metafile = cache(utils.load)
_models: dict[str, nn.Module] = {}


def name(path: Path) -> str:
    """Return the folder and the name of a config."""
    return f"{path.parent.name}/{path.stem}"


@cache
def load(path: Path) -> Config:
    """Read a config; the one that is returned is shared, so copy it before changing it."""
    with patch.object(utils, "load", _read_metafile):
        return Config.fromfile(path)


def build(cfg: Config) -> nn.Module:
    """Build the model of a config on the device ``meta``; configs with the same one share it."""
    init_default_scope(cfg.default_scope)
    key = str(cfg.model)
    if key not in _models:
        # Drawing initial values of nothing takes half of the time.
        with torch.device("meta"), patch.object(nn.init, "_no_grad_trunc_normal_", lambda tensor, *_, **__: tensor):
            _models[key] = MODELS.build(cfg.model)
    return _models[key]
