"""Match all of the authors' weights to a model, or raise an error that says what does not fit."""

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmmsv.messages import list_mismatches
from mmmsv.models.arch import Arch
from mmmsv.models.input_channels import advise_on_channels

from .infer_arch import infer_arch, name_of
from .releases import CURRENT, Release, from_current
from .translation import as_linear, from_authors, is_flat, to_authors

_BACKBONE, _HEAD, _OUR_HEAD = "backbone.", "classifier.head.", "head.fc."
# What the names of a backbone begin with, in the authors' files.
_IN_BACKBONE = ("patch_embed.", "layers.", "outnorm")
BACKBONE_NAMES = (_BACKBONE, *_IN_BACKBONE)


class Match(NamedTuple):
    """Weights with our names (``backbone.*`` and the rest), and what has no counterpart.

    Args:
        weights: Ours, for the model.
        used: Names of the file that they are of.
        fresh: Names of the model that the file does not have.
        unused: Names of the file that the model does not have, or has in another size.
        assumed: What the file does not determine, and the model decides.
    """

    weights: dict[str, Tensor]
    used: list[str]
    fresh: list[str]
    unused: list[str]
    assumed: str

    def summary(self) -> str:
        """Return in one phrase how many tensors fit, and which are left out."""
        fresh = f"; left as initialised: {_modules(self.fresh)}" if self.fresh else ""
        unused = f"; in the file, not used: {_modules(self.unused)}" if self.unused else ""
        return f"{len(self.used)} tensors{fresh}{unused}{self.assumed}"


def is_classifier(weights: Iterable[str]) -> bool:
    """Whether the authors' weights of these names are a classifier's."""
    names = list(weights)
    in_other_models = any(name.startswith(_BACKBONE) for name in names)
    return not in_other_models and any(name.startswith(("classifier.norm.", _HEAD)) for name in names)


def of_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the backbone's weights, without the prefix; all of them, where none has it."""
    cut = {name.removeprefix(_BACKBONE): value for name, value in weights.items() if name.startswith(_BACKBONE)}
    return cut or dict(weights)


def name_of_first(weights: Iterable[str]) -> str:
    """Name the first weight of a backbone as it is, or would be, among the authors' weights of these names."""
    prefixed = any(name.startswith(_BACKBONE) for name in weights)
    return f"{_BACKBONE if prefixed else ''}patch_embed.0.weight"


def has_our_names(weights: Iterable[str]) -> bool:
    """Whether weights of these names have been converted, or were trained here."""
    return any(name.removeprefix(_BACKBONE).startswith("stages.") for name in weights)


def match(
    weights: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    arch: Arch,
    source: str | os.PathLike,
    release: Release = CURRENT,
) -> Match:
    """Translate the authors' weights for a model.

    Args:
        weights: The authors', with their current names.
        model: Names and tensors of the model, ``backbone.*`` and the rest, if there is a rest; the tensors are asked
            for their shapes alone.
        arch: The arch of its backbone.
        source: Where the weights are from, for messages.
        release: Whose names they had, for messages.

    Raises:
        ValueError: They do not fit.
    """
    if has_our_names(weights):
        prefix = ", prefix='backbone.'" if any(name.startswith(_BACKBONE) for name in weights) else ""
        raise ValueError(
            f"{source} has the names of this package already: load it with init_cfg=dict(type='Pretrained', "
            f"checkpoint=...{prefix})"
        )
    classifier, prefixed = is_classifier(weights), any(name.startswith(_BACKBONE) for name in weights)
    given = _linear(weights, prefixed)
    fresh, unused = _leftovers_of_classifier(given, model, arch) if classifier else _leftovers_of_dense(given, model)
    wanted = {name: value for name, value in model.items() if name not in fresh}
    expected = to_authors(wanted, arch, classifier, is_flat(weights))
    if classifier:
        expected |= _head(given, arch)
    elif not prefixed:
        expected = of_backbone(expected)
    expected = _linear(expected, prefixed)
    used = {name: value for name, value in given.items() if name not in unused or name.startswith(_HEAD)}
    if list_mismatches(expected, used):
        advice, shown = _advice(expected, used, arch)
        mismatches = list_mismatches(from_current(expected, release), from_current(used, release), shown)
        raise ValueError(
            f"{source} does not fit {name_of(arch)}, and nothing of it was taken. {'; '.join(mismatches)}. {advice}"
        )
    _check_kind(of_backbone(used), arch, source)
    used = {name: value for name, value in used.items() if name not in unused}
    return Match(from_authors(used, arch), list(used), sorted(fresh), sorted(unused), _assumed(used, arch))


def _linear(weights: Mapping[str, Tensor], prefixed: bool) -> dict[str, Tensor]:
    """Write the linear layers of a backbone, and of the head of a classifier, as such; leave other parts alone."""
    return {
        name: as_linear(value) if not prefixed or name.startswith(_BACKBONE) else value
        for name, value in weights.items()
    }


def _head(weights: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """Shape the classification head that a file must have, for as many classes as its bias is long."""
    bias = weights.get(f"{_HEAD}bias")
    classes = bias.numel() if bias is not None else 1000
    shapes = {"weight": (classes, arch.embed_dims[-1]), "bias": (classes,)}
    return {_HEAD + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _leftovers_of_classifier(
    weights: Mapping[str, Tensor], model: Mapping[str, Tensor], arch: Arch
) -> tuple[set[str], set[str]]:
    """List what the model alone has, and what the file alone has, and may have."""
    ours = {name.replace(_OUR_HEAD, _HEAD): value for name, value in model.items() if name.startswith(_OUR_HEAD)}
    same_head = bool(ours) and not list_mismatches(_head(weights, arch), ours)
    last_norm = f"backbone.out_norms.{len(arch.depths) - 1}."
    kept = (_BACKBONE, _OUR_HEAD) if same_head else (_BACKBONE,)
    fresh = {
        name
        for name in model
        if not name.startswith(kept) or (name.startswith("backbone.out_norms.") and not name.startswith(last_norm))
    }
    unused = set() if same_head else {name for name in weights if name.startswith(_HEAD)}
    if not any(name.startswith(last_norm) for name in model):
        unused |= {name for name in weights if name.startswith("classifier.norm.")}
    return fresh, unused


def _leftovers_of_dense(weights: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> tuple[set[str], set[str]]:
    """List what the model alone has, and what the file alone has, and may have."""
    prefixed = any(name.startswith(_BACKBONE) for name in weights)
    rest = {name for name in weights if prefixed and not name.startswith(BACKBONE_NAMES)}
    rest_of_model = {name for name in model if not name.startswith(_BACKBONE)}
    fresh = set() if rest else rest_of_model
    # A file of nothing but a backbone may be of one without output norms.
    if not prefixed and not any(name.startswith("outnorm") for name in weights):
        fresh = fresh | {name for name in model if name.startswith("backbone.out_norms.")}
    return fresh, set() if rest_of_model else rest


def _advice(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], arch: Arch) -> tuple[str, int]:
    """Say what to do about weights that do not fit, and how many names of each kind help to see it."""
    few, many = 3, 20
    if advice := advise_on_channels(expected, given, name_of_first(given)):
        return advice, few
    weights = of_backbone(given)
    if not any(name.startswith("patch_embed.") for name in weights):
        return "It is of another kind of model, or lacks its beginning", few
    try:
        inferred = infer_arch(weights)
    except ValueError as error:
        return f"It is incomplete: {error}", few
    if inferred != arch:
        return f"The file is of {name_of(inferred)}: give the model that type and arch", few
    unexpected = given.keys() - expected.keys()
    if unexpected and all(name.removeprefix(_BACKBONE).startswith("outnorm") for name in unexpected):
        return "Give the backbone the out_indices of these output norms, too", many
    return "The arch is right, so the file is incomplete or was changed", many


def _check_kind(weights: Mapping[str, Tensor], arch: Arch, source: str | os.PathLike) -> None:
    """Refuse what has the right names and shapes, and yet another meaning."""
    if integers := [name for name, value in weights.items() if not value.is_floating_point()]:
        raise ValueError(f"{source} holds {weights[integers[0]].dtype} in {integers[0]}, expected floating point")
    # The shapes do not show where the norms are; in the authors' families with MS2D and ConvFFN the stem does.
    fusion, ffn_norm = ("norm_last", "post") if arch.stem == "conv" else ("norm_first", "pre")
    for stage, block in enumerate(arch.blocks):
        two_scales = block.full_routes and block.half_routes
        if (two_scales and block.fusion != fusion) or (block.ffn == "conv" and block.ffn_norm != ffn_norm):
            raise ValueError(
                f"{source} is of blocks with fusion={fusion!r} and ffn_norm={ffn_norm!r}, as its stem shows; stage "
                f"{stage} of the model has fusion={block.fusion!r} and ffn_norm={block.ffn_norm!r}, and would compute "
                "something else with these weights. Give the model the arch of the file"
            )


def _assumed(weights: Mapping[str, Tensor], arch: Arch) -> str:
    try:
        known = infer_arch(of_backbone(weights)) == arch
    except ValueError:  # routes that the authors never had
        known = False
    return "" if known else "; directions of routes and half_stride are the model's, the file does not show them"


def _modules(names: Iterable[str]) -> str:
    """Name the modules that tensors are of; outside backbones and classifiers, the outermost ones."""
    inner = (*BACKBONE_NAMES, "classifier.")
    modules = (name.rpartition(".")[0] if name.startswith(inner) else name.partition(".")[0] for name in names)
    return ", ".join(dict.fromkeys(modules))
