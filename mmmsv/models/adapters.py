"""Tell a file of adapters from a torn one, whichever library put the adapters into a backbone."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from itertools import zip_longest

from torch import nn

Shape = tuple[int, ...]

# What peft stores once for a whole model, or not at all, though each layer has it in its state dict.
_STORED_ELSEWHERE = {"vera_A", "vera_B", "randlora_A", "randlora_B", "vblora_vector_bank", "ranknum"}


def list_torn(model: nn.Module, built: Mapping[str, Shape], given: Collection[str]) -> list[str]:
    """List what a file lacks of a backbone with adapters; empty if it holds all weights, or adapters alone and whole.

    What a file has to hold depends on where each tensor is from, and not on which of them are trained:

    - A file with a matrix or kernel that the backbone was built with, under the name that it has now, holds all.
    - Another one holds all that was put into the backbone later, buffers too; but for adapters of another name than
      those in the file (``lora_A.second.weight``), and what peft stores elsewhere (the matrices that VeRA's layers
      share, the ranks of AdaLoRA).
    - Libraries may write biases and norms of the backbone beside adapters. What such a file holds for one norm it holds
      for all of them, and so for adapted layers, and for the other ones.

    Args:
        model: The backbone as it is.
        built: Names and shapes of the weights that it was built with.
        given: Names of the weights in the file.
    """
    now = model.state_dict()
    moved = _moved({name: tuple(value.shape) for name, value in now.items()}, built)
    put_in = {name for name in now if name not in built and name not in moved}
    adapters = _adapter_names(model, put_in)
    held_adapters = {adapters[name] for name in adapters if name in given}
    required = {
        name
        for name in put_in
        if _STORED_ELSEWHERE.isdisjoint(name.split("."))
        and (name not in adapters or not held_adapters or adapters[name] in held_adapters)
    }
    matrices = {name for name in now.keys() - put_in if now[name].dim() > 1 and "bias" not in name.rpartition(".")[2]}
    if not required or not matrices.isdisjoint(given):
        return [name for name in now if name not in given]
    with_matrix = {name.rpartition(".")[0] for name in matrices}
    alike = defaultdict(list)
    for name in now.keys() - put_in:
        layer, _, leaf = name.rpartition(".")
        alike[leaf, layer in with_matrix, name in moved].append(name)
    for names in alike.values():
        if any(name in given for name in names):
            required.update(names)
    return [name for name in now if name in required and name not in given]


def holds_adapters(built: Collection[str], given: Collection[str]) -> bool:
    """Whether names in a file are of modules that an adapter has put into a layer of a backbone.

    Args:
        built: Names of the weights that the backbone was built with.
        given: Names of those in the file.
    """
    layers = {name.rpartition(".")[0] for name in built}
    modules = {name.rpartition(".")[0] for name in given} - layers
    return any(module.startswith(tuple(f"{layer}." for layer in layers)) for module in modules)


def _moved(now: Mapping[str, Shape], built: Mapping[str, Shape]) -> set[str]:
    """Find the weights that adapters have moved: their names have all segments of the old ones, and others between.

    Of several that could be the one, take what stands between in most of the other moved weights, and the shortest.
    """
    put_in = [(name, name.split(".")) for name in now if name not in built]
    candidates: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for old in built.keys() - now.keys():
        for name, segments in put_in:
            between = _between(old.split("."), segments) if now[name] == built[old] else None
            if between is not None:
                candidates[old][name] = between
    numbers = Counter(between for each in candidates.values() for between in each.values())
    return {min(each, key=lambda name: (-numbers[each[name]], len(each[name]))) for each in candidates.values()}


def _between(short: list[str], long: list[str]) -> tuple[str, ...] | None:
    """List the segments that a long name has and a short one has not; None if it lacks one of those."""
    rest, between = list(short), []
    for segment in long:
        if rest and segment == rest[0]:
            del rest[0]
        else:
            between.append(segment)
    return None if rest else tuple(between)


def _adapter_names(model: nn.Module, put_in: Collection[str]) -> dict[str, str]:
    """Give the names of the adapters that weights are of, where layers have adapters by name: in dicts of like ones."""
    dicts = [
        f"{path}."
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleDict | nn.ParameterDict) and _are_alike(module)
    ]
    return {
        name: name.removeprefix(path).partition(".")[0] for path in dicts for name in put_in if name.startswith(path)
    }


def _are_alike(parts: nn.ModuleDict | nn.ParameterDict) -> bool:
    """Whether the tensors of all parts have the same shapes, but for one side: the rank."""
    first, *others = [
        [value.shape for value in (part.parameters() if isinstance(part, nn.Module) else [part])]
        for part in parts.values()
    ] or [[]]
    return all(
        len(shapes) == len(first) and all(_differ_in(a, b) <= 1 for a, b in zip(shapes, first, strict=True))
        for shapes in others
    )


def _differ_in(one: Shape, other: Shape) -> int:
    return sum(a != b for a, b in zip_longest(one, other))
