"""Make the names of our models known to mmpretrain and to the inferencers of mmdet and mmseg.

``mmpretrain.get_model`` looks a name up in the table of mmpretrain's ``ModelHub``; MMEngine's inferencers look it up in
the metafiles of the package that is their scope. Neither reads the metafiles of another package.
"""

import threading
from collections.abc import Callable, Mapping
from functools import cache, wraps
from importlib.util import find_spec

from mmengine.config import Config
from mmengine.infer import BaseInferencer

from .checkpoints.released import SCHEME
from .messages import first_of
from .metafiles import MODEL_INDEX, read_models

_Lookup = Callable[[BaseInferencer, str], tuple[Config, str | None]]
_lock = threading.Lock()


def register_model_names() -> None:
    """Make mmpretrain and the inferencers of MMEngine take the names of our models (``mim search mmmsv``).

    - ``get_model``, ``list_models`` and ``ImageClassificationInferencer`` of mmpretrain take the classifiers, where it
      is installed; this imports it. ``pretrained=True`` asks for the authors' file, ``authors://NAME``.
    - ``DetInferencer``, ``MMSegInferencer`` and other inferencers of MMEngine take the models of their library. Without
      ``weights`` they ask for the authors' file. If they released none, MMEngine warns that the model is random.

    Capital letters in names do not matter, as in these libraries. Names that are not ours are looked up as before. A
    second call changes nothing.

    Raises:
        ValueError: mmpretrain's table has a model of one of these names already, or the metafiles are not there.
    """
    with _lock:
        _register()


@cache  # so that each library is told once
def _register() -> None:
    models = read_models(MODEL_INDEX)
    if not models:
        raise ValueError(f"the models are listed by {MODEL_INDEX}, which lists none: install mmmsv again")
    if find_spec("mmpretrain"):
        _register_classifiers()
    # pyrefly: ignore[bad-assignment]: MMEngine annotates weights as a string, and takes None
    BaseInferencer._load_model_from_metafile = _looks_first_in(models, BaseInferencer._load_model_from_metafile)


def _register_classifiers() -> None:
    from mmpretrain.apis.model import ModelHub

    models = read_models(MODEL_INDEX).items()
    classifiers = [name for name, model in models if model["Config"].startswith("configs/cls/")]
    if taken := [name for name in classifiers if ModelHub.has(name)]:
        raise ValueError(f"mmpretrain has {first_of(taken)} already, of another package; nothing was registered")
    for metafile in (MODEL_INDEX.parent / "configs/cls").rglob("metafile.yml"):
        ModelHub.register_model_index(metafile, config_prefix=MODEL_INDEX.parent)
    for name in classifiers:
        ModelHub._models_dict[name].weights = SCHEME + name


def _looks_first_in(models: Mapping[str, Mapping], stock: _Lookup) -> _Lookup:
    """Make an inferencer look a name up in our metafiles, and elsewhere if it is not there."""

    @wraps(stock)
    def load_model(inferencer: BaseInferencer, name: str) -> tuple[Config, str | None]:
        model = models.get(name.lower())
        if model is None:
            return stock(inferencer, name)
        cfg = Config.fromfile(MODEL_INDEX.parent / model["Config"])
        if cfg.default_scope != inferencer.scope:
            raise ValueError(
                f"{name} is a model of {cfg.default_scope}, and this {type(inferencer).__name__} runs models of "
                f"{inferencer.scope}; take an inferencer of {cfg.default_scope}"
            )
        return cfg, SCHEME + model["Name"] if "Converted From" in model else None

    return load_model
