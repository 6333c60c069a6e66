"""Fitting the authors' weights to a model: all of them, or an error that says what is wrong."""

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from mmmsv.models.arch import Arch
from mmmsv.models.fit import list_misfits

from .inference import infer_arch, name_of
from .layout import as_linear, from_authors, is_flat, to_authors

_BACKBONE, _HEAD, _NORM = "backbone.", "classifier.head.", "classifier.norm."


class Match(NamedTuple):
    """Weights with our names (``backbone.*`` and the rest), and what has no counterpart.

    Args:
        weights: Ours, for the model.
        used: Names of the file that they are of.
        fresh: Names of the model that the file does not have.
        unused: Names of the file that the model does not have.
    """

    weights: dict[str, Tensor]
    used: list[str]
    fresh: list[str]
    unused: list[str]

    def told(self) -> str:
        """Say in one phrase how much fits, and what does not have to."""
        fresh = f"; not in the file, so left as they were: {_modules(self.fresh)}" if self.fresh else ""
        unused = f"; not in the model, so not used: {_modules(self.unused)}" if self.unused else ""
        return f"{len(self.used)} tensors{fresh}{unused}"


def is_classifier(weights: Iterable[str]) -> bool:
    """Whether the authors' weights of these names are a classifier's."""
    return any(name.startswith("classifier.") for name in weights)


def of_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the backbone's weights, without the prefix; all of them, where none has it."""
    cut = {name.removeprefix(_BACKBONE): value for name, value in weights.items() if name.startswith(_BACKBONE)}
    return cut or dict(weights)


def match(weights: Mapping[str, Tensor], model: Mapping[str, Tensor], arch: Arch, source: str | os.PathLike) -> Match:
    """Translate the authors' weights for a model.

    Args:
        weights: The authors'.
        model: Names and tensors of the model, ``backbone.*`` and the rest, if there is a rest; the tensors are asked
            for their shapes alone.
        arch: The arch of its backbone.
        source: Where the weights are from, for messages.

    Raises:
        ValueError: They do not fit.
    """
    leftovers = _leftovers_of_classifier if is_classifier(weights) else _leftovers_of_dense
    fresh, unused = leftovers(weights, model, len(arch.depths) - 1)
    used = {name: value for name, value in weights.items() if name not in unused}
    wanted = {name: value for name, value in model.items() if name not in fresh}
    expected = to_authors(wanted, arch, is_classifier(weights), is_flat(weights))
    if not any(name.startswith(_BACKBONE) for name in weights):
        expected = of_backbone(expected)
    misfits = list_misfits(*({name: as_linear(value) for name, value in side.items()} for side in (expected, used)))
    if misfits:
        raise ValueError(
            f"{source} does not fit {name_of(arch)}; nothing was loaded. {'; '.join(misfits)}. "
            f"{_advice(of_backbone(weights), arch)}"
        )
    _check_kind(of_backbone(used), arch, source)
    return Match(from_authors(used, arch), list(used), sorted(fresh), sorted(unused))


def _leftovers_of_classifier(
    weights: Mapping[str, Tensor], model: Mapping[str, Tensor], last: int
) -> tuple[set[str], set[str]]:
    head = {name.replace("head.fc.", _HEAD): value for name, value in model.items() if name.startswith("head.fc.")}
    theirs = {name: value for name, value in weights.items() if name.startswith(_HEAD)}
    heads_fit = bool(head) and not list_misfits(head, {name: as_linear(value) for name, value in theirs.items()})
    kept = (_BACKBONE, "head.fc.") if heads_fit else (_BACKBONE,)
    last_norm = f"backbone.out_norms.{last}."
    fresh = {
        name
        for name in model
        if not name.startswith(kept) or (name.startswith("backbone.out_norms.") and not name.startswith(last_norm))
    }
    unused = set() if heads_fit else set(theirs)
    if not any(name.startswith(last_norm) for name in model):
        unused |= {name for name in weights if name.startswith(_NORM)}
    return fresh, unused


def _leftovers_of_dense(
    weights: Mapping[str, Tensor], model: Mapping[str, Tensor], last: int
) -> tuple[set[str], set[str]]:
    prefixed = any(name.startswith(_BACKBONE) for name in weights)
    rest = {name for name in weights if prefixed and not name.startswith(_BACKBONE)}
    rest_of_model = {name for name in model if not name.startswith(_BACKBONE)}
    fresh = set() if rest else rest_of_model
    if not any(name.startswith("outnorm") for name in of_backbone(weights)):
        fresh = fresh | {name for name in model if name.startswith("backbone.out_norms.")}
    return fresh, set() if rest_of_model else rest


def _advice(weights: Mapping[str, Tensor], arch: Arch) -> str:
    if not any(name.startswith("patch_embed.") for name in weights):
        if any(name.startswith("stem.") for name in weights):
            return "It has the names of mmmsv itself: load it with type='Pretrained'"
        return "It is of another kind of model, or lacks its beginning"
    try:
        inferred = infer_arch(weights)
    except ValueError as error:
        return f"It is incomplete: {error}"
    if inferred == arch:
        return "The arch is right, so the file is incomplete or was changed, or in_channels is another"
    return f"The file is of {name_of(inferred)}: give the model that arch"


def _check_kind(weights: Mapping[str, Tensor], arch: Arch, source: str | os.PathLike) -> None:
    """Refuse what has the right names and shapes, and yet another meaning."""
    if integers := [name for name, value in weights.items() if not value.is_floating_point()]:
        raise ValueError(f"{source} holds {weights[integers[0]].dtype} in {integers[0]}, expected floating point")
    # The shapes do not tell where the norms stand; among the authors' models with MS2D, the stem does.
    fusion, ffn_norm = ("norm_last", "post") if arch.stem == "conv" else ("norm_first", "pre")
    for stage, block in enumerate(arch.blocks):
        if not block.full_routes or not block.half_routes:
            continue
        if block.fusion != fusion or (block.ffn != "none" and block.ffn_norm != ffn_norm):
            raise ValueError(
                f"{source} is of blocks with fusion={fusion!r} and ffn_norm={ffn_norm!r}, as its stem tells; stage "
                f"{stage} of the model has fusion={block.fusion!r} and ffn_norm={block.ffn_norm!r}, and would compute "
                "something else with these weights. Give the model the arch of the file"
            )


def _modules(names: Iterable[str]) -> str:
    """Name the modules that tensors are of; outside backbones and classifiers, the outermost ones."""
    inner = ("backbone.", "classifier.", "patch_embed.", "layers.", "outnorm")
    modules = (name.rpartition(".")[0] if name.startswith(inner) else name.partition(".")[0] for name in names)
    return ", ".join(dict.fromkeys(modules))
