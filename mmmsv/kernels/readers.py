"""Maps with two readers: the op that has computed such a map, or one that reads it, adds the gradients of both.

Autograd adds them in a pass of its own, which reads two maps and writes a third. A kernel that reads a gradient, or
writes one, can add another on the way. So an op with such kernels returns, where autograd records it, y twice, and x:
outputs of one node, each with a gradient of its own. Layers know nothing of that and return y, by which the others are
found. Where a hook or an adapter has replaced it there are none, and autograd adds.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mmmsv.compat.torch_versions import is_compiling


class _Others(NamedTuple):
    """What the op that has computed y returned beside it: x, as it was given and as it was returned, and y again."""

    x: Tensor
    x_again: Tensor | None
    y_again: Tensor


_others_of = WeakTensorKeyDictionary()


def remember(y: Tensor, y_again: Tensor, x: Tensor, x_again: Tensor | None) -> None:
    """Keep, as long as y lives, what its op has returned beside it; ``x_again`` is None where x has no gradient."""
    _others_of[y] = _Others(x, x_again, y_again)


def branch_off(layer: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Call a layer; return x, for whatever else reads it, and the result.

    In the backward pass the layer's own kernel adds the gradient that the rest gives x, if it is a norm's or a
    convolution's that can; otherwise autograd does.

    Args:
        layer: Takes x, and returns one tensor.
        x: Its argument. What else reads it is to take what is returned for it.
    """
    y = layer(x)
    if is_compiling() or not isinstance(y, Tensor):
        return x, y
    others = _others_of.get(y)
    if others is None or others.x is not x or others.x_again is None:
        return x, y
    return others.x_again, y


def read_twice(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return a map for each of two readers.

    In the backward pass the kernel that goes back over what has computed it adds the gradients of both, if it can;
    otherwise autograd does.
    """
    others = None if is_compiling() else _others_of.pop(y, None)
    # A change in place since then is a part of y's history, and not of what was returned beside it.
    if others is None or others.y_again.grad_fn is not y.grad_fn:
        return y, y
    return y, others.y_again
