"""Layers that lower the resolution: the stems, and the downsampling between stages."""

from typing import ClassVar

from torch import Tensor, channels_last, nn
from torch.jit import is_tracing
from torch.nn.functional import gelu, pad

from mmmsv.compat.torch_versions import is_compiling
from mmmsv.kernels import is_transformed

from .inference import convolve_and_norm, merge_patches
from .layers import ChannelsLastConv2d, LayerNorm, projection
from .tracing import one_node


class PatchEmbed(nn.Module):
    """Embed patches of 4 x 4 pixels: ``LN(Conv4x4 stride 4(image))``.

    Args:
        in_channels: Channels of the image.
        dim: Channels of the embedding.

    Source:
        MSVMamba, arXiv 2405.14174; also the patch embedding of Swin and VMamba.
    """

    min_side: ClassVar[int] = 4  # pixels: one patch

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = ChannelsLastConv2d(in_channels, dim, 4, stride=4)
        self.norm = LayerNorm(dim)

    @one_node
    def forward(self, image: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, H // 4, W // 4, dim)``."""
        return self.norm(self.conv(_channels_last(image)))


class ConvStem(nn.Module):
    """Embed an image with two convolutions: ``LN(Conv3x3 stride 2(GELU(LN(Conv3x3 stride 2(image)))))``.

    Args:
        in_channels: Channels of the image.
        dim: Channels of the embedding, even; half of them between the convolutions.

    Source:
        MSVMamba, NeurIPS 2024, and the 2024 release of VMamba.
    """

    min_side: ClassVar[int] = 1

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = ChannelsLastConv2d(in_channels, dim // 2, 3, stride=2, padding=1)
        self.norm1 = LayerNorm(dim // 2)
        self.conv2 = ChannelsLastConv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = LayerNorm(dim)

    @one_node
    def forward(self, image: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, ceil(H / 4), ceil(W / 4), dim)``."""
        x = gelu(self.norm1(self.conv1(_channels_last(image))))
        return _convolve_and_norm(x, self.conv2, self.norm2)


class PatchMerging(nn.Module):
    """Halve the resolution: ``Linear(LN(the four pixels of each 2 x 2 patch, side by side))``.

    An odd side gets one row or column of zeros at its end.

    Args:
        in_dim: Channels of the input map.
        out_dim: Channels of the output map.

    Source:
        Swin, arXiv 2103.14030, Section 3.1.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * in_dim, in_branch=True)
        self.reduction = projection(4 * in_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, in_dim)`` to ``(B, ceil(H / 2), ceil(W / 2), out_dim)``."""
        y = merge_patches(x, self.norm, self.reduction)
        if y is not None:
            return y
        height, width = x.shape[1:3]
        # One program for all sizes where it is compiled or traced; otherwise padding with nothing would copy the map.
        if is_compiling() or is_tracing() or height % 2 or width % 2:
            x = pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # Of the four pixels side by side, those of a column come one after the other.
        patches = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(patches))


class ConvDownsample(nn.Module):
    """Halve the resolution: ``LN(Conv3x3 stride 2(x))``.

    Args:
        in_dim: Channels of the input map.
        out_dim: Channels of the output map.

    Source:
        MSVMamba, NeurIPS 2024, and the 2024 release of VMamba.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = ChannelsLastConv2d(in_dim, out_dim, 3, stride=2, padding=1)
        self.norm = LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H, W, in_dim)`` to ``(B, ceil(H / 2), ceil(W / 2), out_dim)``."""
        return _convolve_and_norm(x, self.conv, self.norm)


def _convolve_and_norm(x: Tensor, conv: ChannelsLastConv2d, norm: LayerNorm) -> Tensor:
    y = convolve_and_norm(x, conv, norm)
    return norm(conv(x)) if y is None else y


def _channels_last(image: Tensor) -> Tensor:
    # A copy of three channels, where the image is not channels-last yet, saves one of the whole map after it.
    # Transforms such as vmap know no memory formats.
    if is_compiling() or not is_transformed():
        image = image.contiguous(memory_format=channels_last)
    return image.permute(0, 2, 3, 1)
