"""Make the names of our models known to mmpretrain and to the inferencers of mmdet and mmseg.

``mmpretrain.get_model`` looks a name up in the table of mmpretrain's ``ModelHub``; MMEngine's inferencers look it up in
the metafiles of the package that is their scope. Neither reads the metafiles of another package.
"""

import threading
from collections.abc import Callable, Mapping
from functools import cache, wraps
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import load
from mmengine.infer import BaseInferencer

# Where mim looks for the configs and metafiles of a package.
_MIM = Path(__file__).parent / ".mim"
_Lookup = Callable[[BaseInferencer, str], tuple[Config, str | None]]
_lock = threading.Lock()


def register_model_names() -> None:
    """Make mmpretrain and MMEngine's inferencers take the names of our models, those that ``mim search mmmsv`` lists.

    - ``mmpretrain.get_model``, ``list_models`` and ``ImageClassificationInferencer`` take the classifiers, if mmpretrain
      is installed; this imports it. ``pretrained=True`` asks for the authors' file, ``authors://NAME``.
    - ``DetInferencer``, ``MMSegInferencer`` and other inferencers of MMEngine take the models of their library. Without
      ``weights`` they load the authors' file if it has a direct link. If not, MMEngine warns that the model is random.

    Capital letters in names do not matter, as in these libraries. Names that are not ours are looked up as before. A
    second call changes nothing.

    Raises:
        ValueError: mmpretrain's table has a model of one of these names already.
    """
    with _lock:
        _register()


@cache  # so that each library is told once
def _register() -> None:
    if find_spec("mmpretrain"):
        _register_classifiers()
    # pyrefly: ignore[bad-assignment]: MMEngine annotates weights as a string, and takes None
    BaseInferencer._load_model_from_metafile = _looks_here_first(BaseInferencer._load_model_from_metafile)


def _register_classifiers() -> None:
    from mmpretrain.apis.model import ModelHub

    for metafile in _metafiles():
        if metafile.is_relative_to(_MIM / "configs/cls"):
            ModelHub.register_model_index(metafile, config_prefix=_MIM)
            for model in load(metafile)["Models"]:
                ModelHub._models_dict[model["Name"]].weights = f"authors://{model['Name']}"


def _looks_here_first(stock: _Lookup) -> _Lookup:
    """Make an inferencer look a name up here, and elsewhere if there is none."""

    @wraps(stock)
    def load_model(inferencer: BaseInferencer, name: str) -> tuple[Config, str | None]:
        model = _models().get(name.lower())
        if model is None:
            return stock(inferencer, name)
        cfg = Config.fromfile(_MIM / model["Config"])
        if cfg.default_scope != inferencer.scope:
            raise ValueError(
                f"{name} is a model of {cfg.default_scope}, and this {type(inferencer).__name__} runs models of "
                f"{inferencer.scope}; take an inferencer of {cfg.default_scope}"
            )
        has_link = "Weights" in model.get("Converted From", {})
        return cfg, f"authors://{model['Name']}" if has_link else None

    return load_model


@cache
def _models() -> Mapping[str, Mapping]:
    """Read the entries of all metafiles, by the names of their models."""
    return {model["Name"]: model for metafile in _metafiles() for model in load(metafile)["Models"]}


def _metafiles() -> list[Path]:
    return [_MIM / metafile for metafile in load(_MIM / "model-index.yml")["Import"]]
