"""Find the weights of a backbone in a checkpoint of whatever program, and take off what wrappers add to their names."""

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")

# Entries that weights are in, by the programs that write them; of several in a file, the first is taken.
ENTRIES = (
    "model_ema",
    "state_dict_ema",
    "ema",
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "ema_state_dict",
)
# What only wrappers of torch put into names, wherever they are: torch.compile, FSDP, activation checkpointing.
_IN_NAMES = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What wrappers that average weights count their steps in: those of torch and of MMEngine.
_COUNTERS = {"n_averaged", "steps"}
# What the names of a model or of its backbone begin with: ours, and the authors'.
_BEGINNINGS = {"backbone", "stem", "stages", "out_norms", "patch_embed", "layers", "classifier"}
_OUR_BLOCK = re.compile(r"(?:^|\.)stages\.\d+\.blocks\.\d+\.scan\.")
_THEIR_BLOCK = re.compile(r"(?:^|\.)layers\.\d+\.blocks\.\d+\.(?:op|self_attention)\.")


def has_our_blocks(names: Iterable[object]) -> bool:
    """Whether some of these are names of weights in a block of this package, with whatever before them."""
    return any(isinstance(name, str) and _OUR_BLOCK.search(name) for name in names)


def has_their_blocks(names: Iterable[object]) -> bool:
    """Whether some of these are names of weights in a block, as the authors name them, with whatever before them."""
    return any(isinstance(name, str) and _THEIR_BLOCK.search(name) for name in names)


def list_places(names: Iterable[str]) -> list[str]:
    """List what is before the names of backbones of this package: ``''``, ``'backbone.'``, ``'model.backbone.'``."""
    return sorted({name.partition("stages.")[0] for name in names if has_our_blocks([name])})


def find_weights(checkpoint: Mapping[Any, Any]) -> dict[str, Mapping[Any, Any]]:
    """Find weights in a checkpoint: those of one model, if it holds them in one of :data:`ENTRIES` or in one other.

    The first of :data:`ENTRIES` counts, and within it the first of those again (``model.state_dict``); in files of
    MMEngine's, which hold ``meta`` or ``ema_state_dict`` beside it, ``state_dict``. The states of optimizers do not.

    Args:
        checkpoint: Names and tensors, or a dict with such dicts in it, at any depth.

    Returns:
        By the names of the entries, joined with dots: one, or several among which no order is known, or none. The name
        of the checkpoint itself is empty.
    """
    holders = dict(_walk(checkpoint, (), set()))
    ours = {path: entry for path, entry in holders.items() if has_our_blocks(entry) or has_their_blocks(entry)}
    # Weights of something else are found, too, so that an error can say what they are of.
    places = {(), *((name,) for name in ENTRIES)}
    found = ours or {path: entry for path, entry in holders.items() if path in places}
    known = {path: entry for path, entry in found.items() if path and all(name in ENTRIES for name in path)}
    if not known:
        return {".".join(path): entry for path, entry in found.items()}
    is_of_mmengine = ("state_dict",) in known and not checkpoint.keys().isdisjoint(("meta", "ema_state_dict"))
    first = ("state_dict",) if is_of_mmengine else min(known, key=lambda path: [ENTRIES.index(name) for name in path])
    return {".".join(first): known[first]}


def without_wrappers(weights: Mapping[str, T], only_torch: bool = False) -> Mapping[str, T]:
    """Take off what wrappers put before or into all names, such as ``module.``, ``_orig_mod.`` or ``model.``.

    Args:
        weights: By name.
        only_torch: Leave what comes before all names, if it is not from torch's own wrappers.

    Returns:
        The same object, if there is nothing to take off.

    Raises:
        ValueError: Two names become one.
    """
    return rename(weights, (), only_torch)


def rename(weights: Mapping[str, T], names: Iterable[str], only_torch: bool = False) -> Mapping[str, T]:
    """Give weights the names that a model has for them, whatever wrappers have added to either.

    Args:
        weights: By name.
        names: Those of the model.
        only_torch: Leave what comes before all names, if it is not from torch's own wrappers.

    Returns:
        The same object, if no name changes. Otherwise with the versions of the modules that wrote it, which PyTorch
        keeps as ``_metadata`` of a state dict.

    Raises:
        ValueError: Two names become one.
    """
    names = set(names)
    if not all(isinstance(name, str) for name in weights) or (names and weights.keys() <= names):
        return weights
    own_wrapper, wrapper = _wrapper(names, only_torch), _wrapper(weights, only_torch)
    own = {_inner(name, own_wrapper): name for name in names}
    new = {name: own.get(inner, inner) for name in weights for inner in [_inner(name, wrapper)]}
    if all(name == each for name, each in new.items()):
        return weights
    renamed: OrderedDict[str, T] = OrderedDict()
    olds: dict[str, str] = {}
    for name, value in weights.items():
        if name in _COUNTERS and name not in names:
            continue
        if new[name] in renamed:
            raise ValueError(
                f"the checkpoint holds {olds[new[name]]} and {name}, which are one weight without what wrappers add to "
                "names; nothing was loaded. Save the weights of one model"
            )
        renamed[new[name]], olds[new[name]] = value, name
    versions = {_inner(path, wrapper): version for path, version in getattr(weights, "_metadata", {}).items()}
    paths = {path: path for path in versions} | {_inner(path, own_wrapper): path for path in sorted(_modules(names))}
    # pyrefly: ignore[missing-attribute]: torch sets it on an OrderedDict, too
    renamed._metadata = OrderedDict((paths[path], version) for path, version in versions.items())
    return renamed


def _walk(
    entry: object, path: tuple[str, ...], around: Collection[int]
) -> Iterable[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Walk over what holds tensors, but for the states of optimizers, and for a dict inside itself."""
    if isinstance(entry, Mapping) and id(entry) not in around:
        if any(isinstance(value, Tensor) for value in entry.values()):
            yield path, entry
        for name, value in entry.items():
            if not str(name).startswith("optim"):
                yield from _walk(value, (*path, str(name)), {*around, id(entry)})


def _inner(name: str, wrapper: str) -> str:
    """Take off what wrappers have put before or into the name of a weight or of a module."""
    inner = "".join(f"{segment}." for segment in name.split(".") if segment not in _IN_NAMES)
    return inner.removeprefix(wrapper).removesuffix(".")


def _modules(names: Iterable[str]) -> set[str]:
    """Name the modules that hold weights of these names, the outer ones too."""
    segments = [name.split(".")[:-1] for name in names]
    return {".".join(each[:depth]) for each in segments for depth in range(len(each) + 1)}


def _wrapper(names: Iterable[str], only_torch: bool) -> str:
    """Return what comes before the name of a part of a model in all of these names, without what is inside them."""
    inner = [_inner(name, "") for name in names if name not in _COUNTERS]
    for name in inner:
        segments = name.split(".")
        if depth := next((i for i, segment in enumerate(segments) if segment in _BEGINNINGS), None):
            wrapper = "".join(f"{segment}." for segment in segments[:depth])
            is_wrapper = all(each.startswith(wrapper) for each in inner)
            return wrapper if is_wrapper and not (only_torch and wrapper.replace("module.", "")) else ""
    # Of a model whose parts have other names, torch's own.
    return "module." if inner and all(name.startswith("module.") for name in inner) else ""
