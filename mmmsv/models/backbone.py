"""The backbone that MSVMamba and VMamba share, composed as an :class:`~mmmsv.models.arch.Arch` says."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import ClassVar, NoReturn

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.fx import Proxy

from .arch import Arch, resolve_arch
from .blocks import VSSBlock, build_block
from .input_channels import AdaptInChannels
from .layers import LayerNorm, OutputNorm
from .mismatches import refuse_mismatches
from .profilers import tell_profilers
from .recompute import RecomputingModule
from .resolution import ConvDownsample, ConvStem, PatchEmbed, PatchMerging
from .stage import Stage

_STEMS = {"patch": PatchEmbed, "conv": ConvStem}
_DOWNSAMPLES = {"merge": PatchMerging, "conv": ConvDownsample}


class VisionMamba(BaseModule):
    """A hierarchical vision Mamba: ``stem -> stage 0 -> downsample -> stage 1 -> downsample -> stage 2 -> ...``.

    Feature maps are taken after the blocks of each stage, each through a norm of its own.

    Args:
        arch: Name of one of :attr:`archs`, or settings of your own (:func:`~mmmsv.models.arch.resolve_arch`).
        in_channels: Channels of the image.
        out_indices: Stages whose maps are returned, in ascending order; strides 4, 8, 16, 32. All stages if not given.
            Stages after the last of them are not run, and frozen.
        drop_path_rate: Drop path rate of the last block, in [0, 1); it rises linearly from 0 in the first.
        ffn_drop_rate: Dropout in the FFNs, in [0, 1).
        frozen_stages: -1 freezes nothing, 0 the stem, ``k`` also the first ``k`` stages, norms included;
            frozen parts get no gradient and stay in evaluation mode.
        norm_eval: Keep every norm in evaluation mode while training. Accepted because stock configs set it for batch
            norms; a LayerNorm has no running statistics, so the numbers do not change.
        with_cp: Recompute each block in the backward pass: less memory, about a third more time.
        init_cfg: MMEngine's initialisation config: ``dict(type='Pretrained', checkpoint=PATH)`` for its checkpoints,
            ``dict(type='mmmsv.AuthorsCheckpoint', checkpoint=PATH_OR_URL)`` for those of the authors.
        recompute: True: recompute z of the gate, the norm after the scans, the gated map and the input of ``fc2`` in
            the backward pass. A block of ``'tiny'`` then keeps 14 maps of its input's size, not 22 (17, not 31, where
            PyTorch's own ops run), and a training step on a CPU takes about 6 % longer. None, the default: on a CPU,
            recompute the norm and the gated map, so that 18 are kept and a step takes 1 % longer; otherwise nothing.
        adapt_in_channels: What to do with the first weight of a checkpoint that was made with other ``in_channels``:
            ``'init'`` leaves the model's as it is initialised, ``'repeat'`` repeats it over the channels, ``'average'``
            gives each channel the mean (:func:`~mmmsv.models.input_channels.adapt_in_channels`). The log says what was
            done. None, the default, refuses such a checkpoint.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range; the message says what is allowed.
    """

    archs: ClassVar[dict[str, Arch]]
    num_extra_tokens: ClassVar[int] = 0  # there is no class token, as ``vis_cam --vit-like`` of mmpretrain asks

    def __init__(
        self,
        arch: str | Mapping[str, object] | Arch = "tiny",
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        drop_path_rate: float = 0.1,
        ffn_drop_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        recompute: bool | None = None,
        adapt_in_channels: AdaptInChannels | None = None,
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        self.arch = resolve_arch(arch, self.archs, name)
        stages = len(self.arch.depths)
        self.out_indices = _checked_indices(range(stages) if out_indices is None else out_indices, stages, name)
        for option, rate in (("drop_path_rate", drop_path_rate), ("ffn_drop_rate", ffn_drop_rate)):
            if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise ValueError(f"{name}: {option} is {rate!r}, expected a number in [0, 1)")
        for option, flag in (("norm_eval", norm_eval), ("with_cp", with_cp)):
            if type(flag) is not bool:
                raise TypeError(f"{name}: {option} is {flag!r}, expected True or False")
        if recompute is not None and type(recompute) is not bool:
            raise TypeError(f"{name}: recompute is {recompute!r}, expected True, False or None")
        if adapt_in_channels not in (None, "init", "repeat", "average"):
            raise ValueError(
                f"{name}: adapt_in_channels is {adapt_in_channels!r}, expected 'init', 'repeat', 'average' or None"
            )
        if type(in_channels) is not int or in_channels < 1:
            raise ValueError(f"{name}: in_channels is {in_channels!r}, expected a whole number of at least 1")
        if type(frozen_stages) is not int or not -1 <= frozen_stages <= stages:
            raise ValueError(f"{name}: frozen_stages is {frozen_stages!r}, expected a whole number in -1..{stages}")
        self.in_channels, self.frozen_stages, self.norm_eval = in_channels, frozen_stages, norm_eval
        self.adapt_in_channels: AdaptInChannels | None = adapt_in_channels

        dims = self.arch.embed_dims
        total = sum(self.arch.depths)
        rates = (drop_path_rate * i / max(total - 1, 1) for i in range(total))
        self.stem = _STEMS[self.arch.stem](in_channels, dims[0])
        self.stages = nn.ModuleList()
        for i, (dim, depth, block) in enumerate(zip(dims, self.arch.depths, self.arch.blocks, strict=True)):
            downsample = _DOWNSAMPLES[self.arch.downsample](dims[i - 1], dim) if i else None
            blocks = [build_block(dim, block, ffn_drop_rate, rate) for rate in islice(rates, depth)]
            self.stages.append(Stage(downsample, blocks))
        self.out_norms = nn.ModuleDict({str(i): OutputNorm(dims[i]) for i in self.out_indices})
        for module in self.modules():
            if isinstance(module, RecomputingModule):
                module.recompute = recompute
            elif isinstance(module, VSSBlock):
                module.with_cp = with_cp
        # What is in it later, and was not built here, is an adapter to those that check its weights.
        self.built = {weight: tuple(value.shape) for weight, value in self.state_dict().items()}
        # By its name before torch 2.5, which later ones keep; there it lost the underscore.
        self._register_load_state_dict_pre_hook(refuse_mismatches, with_module=True)
        self.train()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each map that :meth:`forward` returns: what a neck or head takes for its ``in_channels``."""
        return tuple(self.arch.embed_dims[i] for i in self.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images.

        Args:
            image: ``(B, in_channels, H, W)``, floating point and normalised; any size, as odd as it may be, though
                with patches for a stem H and W are at least 4.

        Returns:
            For each of ``out_indices``, ``(B, embed_dims[i], ceil(h / 2**i), ceil(w / 2**i))``, with the ``h`` and
            ``w`` of the stem: ``H // 4`` with patches, ``ceil(H / 4)`` with convolutions. They are contiguous:
            compiled RoI ops downstream read a map by its pointer, whatever its strides.

        Raises:
            TypeError: The image is no floating-point tensor.
            ValueError: It has another shape, other channels, or sides that are too short for the stem.
        """
        if not isinstance(image, Proxy):  # which torch.fx records the parts with
            self._check(image)
        x = self.stem(image)
        outputs = []
        for i, stage in enumerate(self.stages[: self.out_indices[-1] + 1]):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(self.out_norms[str(i)](x))
        return tuple(outputs)

    def __prepare_scriptable__(self) -> NoReturn:
        """Say what there is in the place of ``torch.jit.script``, which calls this."""
        raise NotImplementedError(
            f"{type(self).__name__} is not made for torch.jit.script; take torch.jit.trace, or torch.export.export"
        )

    def train(self, mode: bool = True) -> "VisionMamba":
        """Set training mode, but for what is frozen; return the module itself."""
        tell_profilers()
        super().train(mode)
        for part in self._frozen():
            part.eval()
            part.requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, LayerNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Return the layer of a parameter, for layer-wise learning-rate decay.

        The stem is layer 0, and the blocks are the layers 1, 2, ... through all stages; a downsampling belongs to the
        first block after it. The last layer is whatever comes after the blocks: output norms, which are new where a
        classifier becomes a detector, and what is not of the backbone. Stages that are not run do not count.

        Args:
            param_name: Name of the parameter, in the backbone or in a model around it.
            prefix: What the backbone's parameters begin with in that model, such as ``'backbone.'``.

        Returns:
            Its layer, and the number of layers.
        """
        layers = sum(self.arch.depths[: self.out_indices[-1] + 1]) + 2
        match param_name.removeprefix(prefix).split(".") if param_name.startswith(prefix) else ():
            case ["stem", *_]:
                layer = 0
            case ["stages", stage, "blocks", block, *_]:
                layer = sum(self.arch.depths[: int(stage)]) + int(block) + 1
            case ["stages", stage, *_]:
                layer = sum(self.arch.depths[: int(stage)]) + 1
            case _:
                layer = layers - 1
        return min(layer, layers - 1), layers

    def _frozen(self) -> list[nn.Module]:
        not_run = self.stages[self.out_indices[-1] + 1 :]
        if self.frozen_stages < 0:
            return [*not_run]
        norms = [self.out_norms[str(i)] for i in self.out_indices if i < self.frozen_stages]
        return [self.stem, *self.stages[: self.frozen_stages], *norms, *not_run]

    def _check(self, image: Tensor) -> None:
        name, least = type(self).__name__, self.stem.min_side
        if not isinstance(image, Tensor):
            raise TypeError(f"{name}: the image is a {type(image).__name__}, expected a torch.Tensor")
        if not image.is_floating_point():
            raise TypeError(
                f"{name}: the image is {image.dtype}, expected floating point; a data_preprocessor with mean and std, "
                "or image.float(), makes it so"
            )
        if image.dim() != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"{name}: the image has shape {tuple(image.shape)}, expected (B, {self.in_channels}, H, W); "
                "in_channels= sets another number of channels"
            )
        if min(image.shape[2:]) < least:
            raise ValueError(
                f"{name}: the image is {image.shape[2]} x {image.shape[3]} pixels, expected at least {least} x {least};"
                " pad or enlarge it"
            )


def _checked_indices(out_indices: Sequence[int], stages: int, name: str) -> tuple[int, ...]:
    if not isinstance(out_indices, (list, tuple, range)):
        raise TypeError(f"{name}: out_indices is {out_indices!r}, expected a list or tuple of stages")
    indices = tuple(out_indices)
    valid = all(type(i) is int and 0 <= i < stages for i in indices)
    if not indices or not valid or list(indices) != sorted(set(indices)):
        raise ValueError(
            f"{name}: out_indices is {out_indices}, expected stages in 0..{stages - 1}, in ascending order, each once"
        )
    return indices
