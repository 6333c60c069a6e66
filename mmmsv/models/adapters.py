"""Tell a file of adapters from a torn one, whichever library put the adapters into a backbone."""

from collections import defaultdict
from collections.abc import Collection, Mapping

from torch import nn

Shape = tuple[int, ...]
# The segments of a name that no name had when the backbone was built, and its last one.
_Kind = tuple[str, ...]


def list_torn(model: nn.Module, built: Mapping[str, Shape], given: Collection[str]) -> list[str]:
    """List what a file lacks of a backbone with adapters; empty if it holds all weights, or adapters alone and whole.

    Libraries write adapters alone, or with some of the other weights: all biases, those of adapted layers, those that
    are trained. What such a file holds of a kind (``weight``, ``base_layer.bias``, ``lora_A.default.weight``) it holds
    whole. Of what was put into the backbone after it was built it may lack

    - what is frozen, or holds an original weight under a longer name, unless the file has its like in other layers;
    - adapters of another name than those in the file (``lora_A.second.weight``).

    Args:
        model: The backbone as it is.
        built: Names and shapes of the weights that it was built with.
        given: Names of the weights in the file.
    """
    now = model.state_dict(keep_vars=True)
    segments = {segment for name in built for segment in name.split(".")}
    kinds: dict[tuple[_Kind, bool], list[str]] = defaultdict(list)
    for name, value in now.items():
        kinds[_kind(name, segments), value.requires_grad].append(name)
    held = {kind for kind, names in kinds.items() if any(name in given for name in names)}
    held_families = {_family(kind, segments) for kind, _ in held}

    torn, originals = set(), set()
    for (kind, is_trained), names in sorted(kinds.items(), key=lambda item: item[0][1]):  # the frozen ones first
        lacking = [name for name in names if name not in given]
        if len(lacking) < len(names):
            torn.update(lacking)
            continue
        for name in lacking:
            if name in built or _family(kind, segments) in held_families:
                continue
            original = _original(name, tuple(now[name].shape), built)
            is_original = original is not None and original not in originals
            if (is_original and (kind[-1:], False) in held) or (is_trained and not is_original):
                torn.add(name)
            originals.add(original)
    put_in = now.keys() - built.keys()
    return [name for name in now if name in torn or (name in put_in and put_in.isdisjoint(given))]


def holds_adapters(built: Collection[str], given: Collection[str]) -> bool:
    """Whether names in a file are of modules that an adapter has put into a layer of a backbone.

    Args:
        built: Names of the weights that the backbone was built with.
        given: Names of those in the file.
    """
    layers = {name.rpartition(".")[0] for name in built}
    modules = {name.rpartition(".")[0] for name in given} - layers
    return any(module.startswith(tuple(f"{layer}." for layer in layers)) for module in modules)


def _kind(name: str, segments: Collection[str]) -> _Kind:
    *outer, last = name.split(".")
    return *(segment for segment in outer if segment not in segments), last


def _family(kind: _Kind, segments: Collection[str]) -> tuple[str, str | None]:
    """Name a kind without the name of its adapter."""
    return kind[0], kind[-1] if kind[-1] in segments else None


def _original(name: str, shape: Shape, built: Mapping[str, Shape]) -> str | None:
    """Find the weight that was built with this shape, and of whose name this one has all segments."""
    longer = name.split(".")
    return next((each for each in built if shape == built[each] and _is_within(each.split("."), longer)), None)


def _is_within(short: list[str], long: list[str]) -> bool:
    rest = iter(long)
    return all(segment in rest for segment in short)
