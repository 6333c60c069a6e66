"""Read the metafiles of the configs: their names, what the authors report, and where the authors' files are."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from mmengine.fileio import load

# It lists the metafiles; mim finds it at the same place.
MODEL_INDEX = Path(__file__).parent / ".mim/model-index.yml"


@cache
def read_models(index: Path) -> dict[str, Mapping]:
    """Return the entries of all metafiles by the names of their models.

    Args:
        index: Path of a model index. Where symbolic links are lost it holds no list, and nothing is returned.
    """
    content = load(index) if index.is_file() else None
    metafiles = content["Import"] if isinstance(content, Mapping) else []
    return {model["Name"]: model for metafile in metafiles for model in load(index.parent / metafile)["Models"]}
