"""The names that VMamba gave its weights in earlier releases, and those of its current one, which MSVMamba has, too."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from mmmsv.models.arch import Arch

T = TypeVar("T")


class Release(NamedTuple):
    """What differs from the current names.

    Args:
        first: Those of the first release (January 2024): ``patch_embed.proj``, ``ln_1``, ``self_attention``, ``head``.
        one_file: The norm of a convolutional downsampling is number 2, not 3, as in the version in one file.
    """

    first: bool = False
    one_file: bool = False


CURRENT = Release()


class _Renamed(NamedTuple):
    """A segment of names, after what comes before it, a regular expression; as it was, and as it is."""

    before: str
    was: str
    is_now: str


_STEM, _STAGE = r"(?:backbone\.)?patch_embed\.", r"(?:backbone\.)?layers\.\d+\."
_FIRST = (
    _Renamed(_STEM, "proj", "0"),
    _Renamed(_STEM, "norm", "2"),
    _Renamed(_STAGE + r"blocks\.\d+\.", "ln_1", "norm"),
    _Renamed(_STAGE + r"blocks\.\d+\.", "self_attention", "op"),
)
# Of a file that is no detector's or segmentor's, which may have a head of its own.
_FIRST_CLASSIFIER = (_Renamed("", "norm", "classifier.norm"), _Renamed("", "head", "classifier.head"))
_ONE_FILE = (_Renamed(_STAGE + r"downsample\.", "2", "3"),)


def release_of(names: Mapping[str, object]) -> Release:
    """Tell from the authors' names of weights which release they are of."""
    return Release(
        first=any(re.match(_STAGE + r"blocks\.\d+\.self_attention\.", name) for name in names),
        one_file=any(re.match(_STAGE + r"downsample\.2\.", name) for name in names),
    )


def to_current(weights: Mapping[str, T], release: Release) -> dict[str, T]:
    """Give weights of a release the current names; one whose new name another weight has keeps its own."""
    return _rename(weights, _differences(weights, release))


def from_current(weights: Mapping[str, T], release: Release) -> dict[str, T]:
    """Give weights with the current names those of a release, the inverse of :func:`to_current`."""
    return _rename(weights, [(before, is_now, was) for before, was, is_now in _differences(weights, release)])


def check_release(arch: Arch, release: Release) -> None:
    """Refuse archs that a release did not have.

    Raises:
        ValueError: It cannot read the weights of this arch.
    """
    plain = arch.stem == "patch" and all(block.ffn == "none" and not block.half_routes for block in arch.blocks)
    if release.first and not plain:
        raise ValueError("VMamba's first release has only blocks of one scan without an FFN, and a stem of patches")
    if release.one_file and arch.downsample != "conv":
        raise ValueError("only a downsampling by convolutions has other names in VMamba's version in one file")


def _differences(weights: Mapping[str, object], release: Release) -> Sequence[_Renamed]:
    prefixed = any(name.startswith("backbone.") for name in weights)
    first = _FIRST if prefixed else (*_FIRST, *_FIRST_CLASSIFIER)
    return (*(first if release.first else ()), *(_ONE_FILE if release.one_file else ()))


def _rename(weights: Mapping[str, T], segments: Sequence[tuple[str, str, str]]) -> dict[str, T]:
    patterns = [(re.compile(rf"^({before}){re.escape(old)}\."), rf"\g<1>{new}.") for before, old, new in segments]
    renamed = {}
    for name, value in weights.items():
        new = name
        for pattern, replacement in patterns:
            new = pattern.sub(replacement, new)
        renamed[name if new in weights else new] = value
    return renamed
