"""Find the files that the authors released, by the names of the configs that they are of."""

import difflib
from pathlib import Path
from typing import NamedTuple

from mmengine.logging import print_log

from mmmsv.metafiles import MODEL_INDEX, read_models

from .downloads import cache_folder, is_url

# What stands before a name, a path or a URL where MMEngine takes a checkpoint.
SCHEME = "authors://"


class Released(NamedTuple):
    """Where a file is.

    Args:
        url: Its direct link, if it has one.
        folder: Otherwise the address of the page that it is on.
    """

    url: str | None
    folder: str | None


def locate(source: str) -> str:
    """Return the path or URL of a file.

    Args:
        source: A path or a URL, which is returned as it is; ``authors://PATH_OR_URL``, without what stands before it;
            or ``authors://NAME``, for the file that the authors released for the config of that name. A name has
            neither a slash nor a dot in it.

    Raises:
        ValueError: No file was released for such a config, or it has no direct link and was not fetched by hand.
    """
    if not source.startswith(SCHEME):
        return source
    name = source.removeprefix(SCHEME)
    if "/" in name or "\\" in name or "." in name:
        return name
    files = read_index(MODEL_INDEX)
    if not files:
        raise ValueError(f"the released files are listed by {MODEL_INDEX}, which lists none: install mmmsv again")
    if name in read_models(MODEL_INDEX) and name not in files:
        raise ValueError(
            f"{name} is a config here, and the authors released no file of it; there are {', '.join(sorted(files))}"
        )
    if name not in files:
        near = difflib.get_close_matches(name, files, n=1)
        raise ValueError(
            f"{source} is no file that the authors released{f' (did you mean {near[0]}?)' if near else ''}; there are "
            f"{', '.join(sorted(files))}. A path has a slash or a dot in it"
        )
    url, folder = files[name]
    path = cache_folder() / f"{name}.pth"
    if url is None and not path.is_file():
        raise ValueError(
            f"the file of {name} has no direct link: fetch it with a browser from {folder} and put it at {path}, where "
            f"{source} finds it"
        )
    print_log(f"{source} is {url or path}", "current")
    return url or str(path)


def is_released(url: str) -> bool:
    """Whether a URL is the direct link of a file that the authors released."""
    return is_url(url) and any(url == file.url for file in read_index(MODEL_INDEX).values())


def read_index(path: Path) -> dict[str, Released]:
    """Read which files were released, and where each is, by the names of the configs that they are of.

    Args:
        path: Of a model index; the metafiles that it lists have entries ``Converted From``.
    """
    models = read_models(path).items()
    places = {name: model["Converted From"] for name, model in models if "Converted From" in model}
    return {name: Released(place.get("Weights"), place.get("Folder")) for name, place in places.items()}
