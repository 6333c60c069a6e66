"""Linear layers on maps."""

from torch import Tensor

from . import ops


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Compute :math:`x W^T + b` for each token of a map, as :func:`torch.nn.functional.linear` does.

    Args:
        x: Map, ``(batch, H, W, C_in)``; with another number of axes it is torch's function.
        weight: ``(C_out, C_in)``.
        bias: ``(C_out,)``; none when omitted.

    Returns:
        ``(batch, H, W, C_out)``, in the dtype that torch's function has.

    Raises:
        TypeError: x is no tensor. Other faults are torch's to report.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"linear: x is a {type(x).__name__}, expected a torch.Tensor")
    return ops.linear(x, weight, bias)
