"""Whole blocks, and layers that lower the resolution, in one call, for their result alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

from .arguments import Activation
from .bypass import is_unobserved
from .dispatch import Backend, select
from .routes import Route

_recorded: dict[str, float] | None = None


class Norm(NamedTuple):
    """The weights of a norm over D channels.

    Args:
        weight: ``(D,)``.
        bias: ``(D,)``.
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    eps: float


class Projection(NamedTuple):
    """The weights of a linear layer.

    Args:
        weight: ``(out, in)``.
        bias: ``(out,)``, or None.
    """

    weight: Tensor
    bias: Tensor | None


class Conv(NamedTuple):
    """A depthwise convolution; arguments of :func:`mmmsv.kernels.depthwise_conv`."""

    weight: Tensor
    bias: Tensor | None
    stride: int
    activation: Activation
    residual: bool


class SelectiveScan(NamedTuple):
    """A selective scan of a map, and the projection of its tokens; S sets of parameters, N numbers of state.

    Args:
        x_proj: To the step of rank R, B and C of each set, ``S * (R + 2 * N)`` numbers.
        W_dt: ``(S, D, R)``.
        b_dt: ``(S, D)``.
        A_log: ``(S, D, N)``.
        Dskip: ``(S, D)``.
        routes: The routes over the map.
        carry: Whether they are one sequence with one set; otherwise each has a set of its own.
    """

    x_proj: Projection
    W_dt: Tensor
    b_dt: Tensor
    A_log: Tensor
    Dskip: Tensor
    routes: tuple[Route, ...]
    carry: bool


class FeedForward(NamedTuple):
    """The second branch of a block.

    Args:
        norm: Its norm, of C channels.
        post_norm: Whether the norm comes last in the branch; otherwise it comes first.
        fc1: From C channels to F.
        conv: Between the two; None for GELU alone.
        fc2: From F channels to C.
    """

    norm: Norm
    post_norm: bool
    fc1: Projection
    conv: Conv | None
    fc2: Projection


class Block(NamedTuple):
    """All weights of a block over C channels whose scans have D.

    Args:
        norm1: Of C channels.
        in_proj: To D channels, or to 2 D where there is a gate.
        gated: Whether there is one.
        full: The convolution before the scan of the full map, and the scan.
        half: Those of the map of lower resolution; None where there is none.
        out_norm: Of D channels.
        norm_first: Whether the norm comes before the two resolutions are added.
        squeeze_excite: Both layers, or None.
        out_proj: To C channels.
        ffn: The second branch, or None.
    """

    norm1: Norm
    in_proj: Projection
    gated: bool
    full: tuple[Conv, SelectiveScan]
    half: tuple[Conv, SelectiveScan] | None
    out_norm: Norm
    norm_first: bool
    squeeze_excite: tuple[Projection, Projection] | None
    out_proj: Projection
    ffn: FeedForward | None


class Downsampling(NamedTuple):
    """A layer that lowers the resolution: ``norm_out(projection(norm_in(patch)))`` of each patch of tokens.

    Args:
        norm_in: Of the whole patch; None where there is none.
        weight: ``(C_out, C_in, kernel, kernel)``; or ``(C_out, kernel * kernel * C_in)``, the tokens of a column of the
            patch one after the other.
        bias: ``(C_out,)``, or None.
        norm_out: Of C_out channels; None where there is none.
        kernel: Tokens of a side of a patch.
        stride: From one patch to the next.
        padding: Rows and columns of zeros before the map; behind it there are as many as the last patch needs.
    """

    norm_in: Norm | None
    weight: Tensor
    bias: Tensor | None
    norm_out: Norm | None
    kernel: int
    stride: int
    padding: int


def is_asked_for(x: Tensor) -> bool:
    """Return whether a backend could compute blocks over x in one call, and nothing observes the steps in between."""
    return _may_be_one_call(x) and _backend(x).blocks is not None


def is_downsampling_asked_for(x: Tensor) -> bool:
    """Return whether a backend could lower the resolution of x in one call, and nothing observes the steps."""
    return _may_be_one_call(x) and _backend(x).downsampling is not None


def compute(x: Tensor, blocks: Sequence[Block]) -> Tensor | None:
    """Compute the forward pass of some blocks, one after the other, in one call.

    Args:
        x: ``(batch, H, W, C)``, float32 or bfloat16.
        blocks: Their weights, in the dtype of x, or in float32 where autocast has made x bfloat16; one block at least.
            Nothing that is made of them outlives the call.

    Returns:
        ``(batch, H, W, C)`` in ``x.dtype``; None where the backend takes no such tensors: then the layers compute the
        blocks, one by one, or say what is wrong with them.
    """
    kernel = _backend(x).blocks
    return None if kernel is None else kernel(x, blocks)


def compute_downsampling(x: Tensor, layer: Downsampling) -> Tensor | None:
    """Compute a layer that lowers the resolution in one call; a size of H becomes ceil(H / stride).

    Args:
        x: ``(batch, H, W, C_in)``, float32 or bfloat16.
        layer: Its weights, in the dtype of x, or in float32 where autocast has made x bfloat16.

    Returns:
        ``(batch, ceil(H / stride), ceil(W / stride), C_out)`` in ``x.dtype``; None where the backend takes no such
        tensors: then the layer computes it, or says what is wrong with them.
    """
    kernel = _backend(x).downsampling
    return None if kernel is None else kernel(x, layer)


@contextmanager
def recorded_steps() -> Iterator[dict[str, float]]:
    """Record the seconds that each step of a block takes, by name, summed over all calls of the ``with`` block.

    A norm, a gate or z that is computed on the way into a product counts to that product.

    Where each thread computes images of its own, they are those of one thread.
    """
    global _recorded
    previous, _recorded = _recorded, {}
    try:
        yield _recorded
    finally:
        _recorded = previous


def are_steps_recorded() -> bool:
    """Return whether a backend is to say how long each step takes."""
    return _recorded is not None


def record_steps(seconds: Mapping[str, float]) -> None:
    """Add what the steps of a call have taken."""
    if _recorded is not None:
        for step, taken in seconds.items():
            _recorded[step] = _recorded.get(step, 0.0) + taken


def _may_be_one_call(x: Tensor) -> bool:
    return is_unobserved(x) and x.device.type in ("cpu", "cuda")


def _backend(x: Tensor) -> Backend:
    """Return the backend that comes first, whatever the op: where it lacks these, ops are to be its own."""
    return select(lambda backend: backend, x.device)
