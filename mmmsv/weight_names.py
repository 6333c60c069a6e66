"""Find the weights of a backbone in a checkpoint of whatever program, and take off what wrappers add to their names."""

import re
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


def find_weights(checkpoint: Mapping[Any, Any]) -> dict[str, Mapping[Any, Any]]:
    """Find weights in a checkpoint: those of one model, if it holds them in one of :data:`ENTRIES` or in one other.

    Args:
        checkpoint: Names and tensors, or a dict with such dicts in it, at any depth.

    Returns:
        By the names of the entries, joined with dots: one, or several among which no order is known, or none. The name
        of the checkpoint itself is empty.
    """
    holders = {".".join(path): entry for path, entry in _walk(checkpoint, ())}
    ours = {path: entry for path, entry in holders.items() if has_our_blocks(entry) or has_their_blocks(entry)}
    # Weights of something else are found, too, so that an error can say what they are of.
    candidates = ours or {path: entry for path, entry in holders.items() if path in ("", *ENTRIES)}
    best = min(map(_rank, candidates), default=0)
    return {path: entry for path, entry in candidates.items() if _rank(path) == best}


def without_wrappers(weights: Mapping[str, T], only_torch: bool = False) -> Mapping[str, T]:
    """Take off what wrappers put before or into all names, such as ``module.``, ``_orig_mod.`` or ``model.``.

    Args:
        weights: By name.
        only_torch: Leave what comes before all names, if it is not from torch's own wrappers.

    Returns:
        The same, if there is nothing to take off.
    """
    if not all(isinstance(name, str) for name in weights):
        return weights
    names = {
        name: ".".join(segment for segment in name.split(".") if segment not in _IN_NAMES)
        for name in weights
        if name not in _COUNTERS
    }
    wrapper = _wrapper(names.values())
    if only_torch and wrapper.replace("module.", ""):
        wrapper = ""
    if not wrapper and all(name == inner for name, inner in names.items()):
        return weights
    return {inner.removeprefix(wrapper): weights[name] for name, inner in names.items()}


def rename(weights: Mapping[str, T], names: Iterable[str]) -> Mapping[str, T]:
    """Give weights the names that a model has for them, whatever wrappers have added to either.

    Args:
        weights: By name; the same are returned, if the model has all of these names.
        names: Those of the model.
    """
    own = without_wrappers({name: name for name in names})
    if weights.keys() <= {*own.values()}:
        return weights
    return {own.get(name, name): value for name, value in without_wrappers(weights).items()}


def _walk(entry: object, path: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    if isinstance(entry, Mapping):
        if any(isinstance(value, Tensor) for value in entry.values()):
            yield path, entry
        for name, value in entry.items():
            yield from _walk(value, (*path, str(name)))


def _rank(path: str) -> int:
    places = [ENTRIES.index(name) for name in path.split(".") if name in ENTRIES]
    return min(places, default=len(ENTRIES))


def _wrapper(names: Collection[str]) -> str:
    """Return what comes before the name of a part of a model in all of these names."""
    for name in names:
        segments = name.split(".")
        if depth := next((i for i, segment in enumerate(segments) if segment in _BEGINNINGS), None):
            wrapper = "".join(f"{segment}." for segment in segments[:depth])
            return wrapper if all(each.startswith(wrapper) for each in names) else ""
    return ""
