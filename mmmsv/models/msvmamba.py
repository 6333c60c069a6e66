"""The MSVMamba backbone (arXiv family: nano, micro, tiny)."""

import logging
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmmsv.registry import MODELS

from .arch import MSVMambaArch, resolve_arch
from .blocks import ConvFFN, MS3Block, Stage
from .ms2d import MS2D
from .stems import PatchEmbed, PatchMerging


@MODELS.register_module()
class MSVMamba(BaseModule):
    """MSVMamba: multi-scale vision Mamba.

    ``PatchEmbed -> stage 0 -> PatchMerging -> stage 1 -> PatchMerging -> stage 2 -> PatchMerging -> stage 3``, with
    feature maps taken behind the blocks of each stage, each through a LayerNorm of its own.

    Args:
        arch: ``'nano'``, ``'micro'``, ``'tiny'``, or a dict with the keys of
            :class:`~mmmsv.models.arch.MSVMambaArch` (``embed_dims`` and ``depths`` at least).
        in_channels: Channels of the image.
        out_indices: Stages whose maps are returned, in ascending order; strides 4, 8, 16, 32. Stages behind the last
            of them are not run, and frozen.
        drop_path_rate: Drop path rate of the last block, in [0, 1); it rises linearly from 0 in the first.
        ffn_drop_rate: Dropout in the FFNs, in [0, 1).
        frozen_stages: -1 freezes nothing, 0 the patch embedding, ``k`` also the first ``k`` stages, norms included;
            frozen parts get no gradient and stay in evaluation mode.
        norm_eval: Keep every norm in evaluation mode while training. Accepted because stock configs set it for batch
            norms; a LayerNorm has no running statistics, so the numbers do not change.
        with_cp: Recompute each block in the backward pass: less memory, about a third more time.
        init_cfg: MMEngine's initialisation config, e.g. ``dict(type='Pretrained', checkpoint=PATH)``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range; the message says what is allowed.

    Source:
        MSVMamba, arXiv 2405.14174. The published classification models used ``drop_path_rate=0.2``.
    """

    def __init__(
        self,
        arch: str | Mapping[str, object] = "tiny",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.1,
        ffn_drop_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = resolve_arch(arch)
        stages = len(self.arch.depths)
        self.out_indices = _checked_indices(out_indices, stages)
        _check_rate("drop_path_rate", drop_path_rate)
        _check_rate("ffn_drop_rate", ffn_drop_rate)
        if type(in_channels) is not int or in_channels < 1:
            raise ValueError(f"MSVMamba: in_channels is {in_channels!r}, expected a whole number of at least 1")
        if type(frozen_stages) is not int or not -1 <= frozen_stages <= stages:
            raise ValueError(f"MSVMamba: frozen_stages is {frozen_stages!r}, expected a whole number in -1..{stages}")
        self.in_channels, self.frozen_stages, self.norm_eval = in_channels, frozen_stages, norm_eval

        dims = self.arch.embed_dims
        rates = torch.linspace(0, drop_path_rate, sum(self.arch.depths)).split(self.arch.depths)
        self.patch_embed = PatchEmbed(in_channels, dims[0])
        self.stages = nn.ModuleList()
        for i, dim in enumerate(dims):
            downsample = PatchMerging(dims[i - 1], dim) if i else None
            blocks = [_block(self.arch, dim, ffn_drop_rate, rate) for rate in rates[i].tolist()]
            self.stages.append(Stage(downsample, blocks, with_cp))
        self.out_norms = nn.ModuleDict({str(i): nn.LayerNorm(dims[i]) for i in self.out_indices})
        self.register_load_state_dict_pre_hook(_check_fit)
        self.train()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images.

        Args:
            image: ``(B, in_channels, H, W)``, floating point and normalised, H and W at least 4; any size, as odd as
                it may be.

        Returns:
            For each of ``out_indices``, ``(B, embed_dims[i], ceil(H // 4 / 2**i), ceil(W // 4 / 2**i))``, contiguous:
            compiled RoI ops downstream read a map by its pointer, whatever its strides.

        Raises:
            TypeError: The image is no floating-point tensor.
            ValueError: It has another shape, other channels, or sides of less than one patch.
        """
        _check_image(image, self.in_channels)
        x = self.patch_embed(image)
        outputs = []
        for i, stage in enumerate(self.stages[: self.out_indices[-1] + 1]):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(self.out_norms[str(i)](x).permute(0, 3, 1, 2).contiguous())
        return tuple(outputs)

    def train(self, mode: bool = True) -> "MSVMamba":
        """Set training mode, but for what is frozen; return the module itself."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
            part.requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        not_run = self.stages[self.out_indices[-1] + 1 :]
        if self.frozen_stages < 0:
            return [*not_run]
        norms = [self.out_norms[str(i)] for i in self.out_indices if i < self.frozen_stages]
        return [self.patch_embed, *self.stages[: self.frozen_stages], *norms, *not_run]


def _block(arch: MSVMambaArch, dim: int, ffn_drop_rate: float, drop_path_rate: float) -> MS3Block:
    ms2d = MS2D(dim, arch.state_size, arch.ssm_ratio, arch.full_routes, arch.half_routes, arch.se, arch.gate)
    ffn = ConvFFN(dim, arch.ffn_ratio, ffn_drop_rate) if arch.ffn == "conv" else None
    return MS3Block(dim, ms2d, ffn, drop_path_rate)


def _checked_indices(out_indices: Sequence[int], stages: int) -> tuple[int, ...]:
    if not isinstance(out_indices, (list, tuple)):
        raise TypeError(f"MSVMamba: out_indices is {out_indices!r}, expected a list or tuple of stages")
    indices = tuple(out_indices)
    valid = all(type(i) is int and 0 <= i < stages for i in indices)
    if not indices or not valid or list(indices) != sorted(set(indices)):
        raise ValueError(
            f"MSVMamba: out_indices is {out_indices}, expected stages in 0..{stages - 1}, in ascending order, each once"
        )
    return indices


def _check_rate(name: str, rate: float) -> None:
    if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ValueError(f"MSVMamba: {name} is {rate!r}, expected a number in [0, 1)")


def _check_image(image: Tensor, in_channels: int) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"MSVMamba: the image is a {type(image).__name__}, expected a torch.Tensor")
    if not image.is_floating_point():
        raise TypeError(
            f"MSVMamba: the image is {image.dtype}, expected floating point; a data_preprocessor with mean and std, or "
            "image.float(), makes it so"
        )
    if image.dim() != 4 or image.shape[1] != in_channels:
        raise ValueError(
            f"MSVMamba: the image has shape {tuple(image.shape)}, expected (B, {in_channels}, H, W); in_channels= sets "
            "another number of channels"
        )
    if min(image.shape[2:]) < PatchEmbed.patch_size:
        raise ValueError(
            f"MSVMamba: the image is {image.shape[2]} x {image.shape[3]} pixels, expected at least "
            f"{PatchEmbed.patch_size} x {PatchEmbed.patch_size}, one patch; pad or enlarge it"
        )


def _check_fit(
    model: MSVMamba,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Refuse weights that do not fit, before one of them is loaded.

    MMEngine loads with ``strict=False`` and only warns, so a wrong checkpoint would train or test on random weights.
    Neither its loader nor torch's says here whether the caller asked for ``strict``, so this holds for both: who wants
    to load a part puts it into ``model.state_dict()`` and loads that. Output norms alone may differ, since which
    stages have one depends on the task.
    """
    ours = model.state_dict()
    theirs = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    missing = [key for key in ours if key not in theirs]
    unexpected = [key for key in theirs if key not in ours]
    output_norms = [key for key in (*missing, *unexpected) if key.startswith("out_norms.")]
    faults = {
        "missing": [key for key in missing if key not in output_norms],
        "unexpected": [key for key in unexpected if key not in output_norms],
        "of another shape": [
            f"{key} ({tuple(theirs[key].shape)} in the checkpoint, {tuple(value.shape)} in the model)"
            for key, value in ours.items()
            if key in theirs and theirs[key].shape != value.shape
        ],
    }
    told = [
        f"{len(keys)} {fault}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for fault, keys in faults.items()
        if keys
    ]
    if told:
        whole_model = any(key.startswith("backbone.") for key in theirs)
        raise ValueError(
            f"the checkpoint does not fit MSVMamba with embed_dims {model.arch.embed_dims} and depths "
            f"{model.arch.depths}; nothing was loaded. {'; '.join(told)}. "
            + (
                "It holds a whole model: load its backbone with prefix='backbone.'"
                if whole_model
                else "Give the arch that the checkpoint was made with"
            )
        )
    if output_norms:
        message = f"MSVMamba: not in both the checkpoint and the model, so left alone: {', '.join(output_norms)}"
        print_log(message, "current", logging.WARNING)
