"""Maps with two readers: the op that has computed such a map, or one that reads it, adds the gradients of both.

Autograd adds them in a pass of its own, which reads two maps and writes a third. A kernel that reads a gradient, or
writes one, can add another on the way. So an op with such kernels returns, where autograd records it, y, y again and,
to :func:`branch_off`, x again: outputs of one node, each with a gradient of its own. Layers know nothing of that and
return y, by which the others are found. Where something has replaced or changed y, or asks for its gradient, there are
none, and autograd adds.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mmmsv.compat.torch_versions import is_compiling

from .bypass import are_gradients_asked_for, share_memory


class _Again(NamedTuple):
    """What an op has returned beside y, and the version that y had then; x where it was branched off."""

    y: Tensor
    version: int
    x: Tensor | None


_branched: ContextVar[Tensor | None] = ContextVar("_branched", default=None)  # what branch_off gives to a layer
_again_of = WeakTensorKeyDictionary()


def is_branched(x: Tensor) -> bool:
    """Return whether a map is what :func:`branch_off` gives to the layer that runs."""
    return _branched.get() is x


def remember(y: Tensor, y_again: Tensor, x_again: Tensor | None) -> None:
    """Keep, as long as y lives, what its op has returned beside it."""
    _again_of[y] = _Again(y_again, y._version, x_again)


def branch_off(layer: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Call a layer; return x, for whatever else reads it, and the result.

    In the backward pass the layer's own kernel adds the gradient that the rest gives x, if it is a norm's or a
    convolution's that can; otherwise autograd does. Both belong to one backward pass, or ``retain_graph`` is needed.

    Args:
        layer: Takes x, and returns one tensor.
        x: Its argument. What else reads it is to take what is returned for it.
    """
    if is_compiling() or not are_gradients_asked_for(x):
        return x, layer(x)
    token = _branched.set(x)
    try:
        y = layer(x)
    finally:
        _branched.reset(token)
    again = _again_of.get(y) if isinstance(y, Tensor) else None
    if again is None or again.x is None:
        return x, y
    _again_of[y] = again._replace(x=None)  # which would keep x as long as y
    return again.x, y


def read_twice(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return a map for each of two readers.

    In the backward pass the kernel that goes back over what has computed it adds the gradients of both, if it can;
    otherwise autograd does. From here on each of the two has the gradient of its own reader alone, if one asks for it,
    and torch refuses to change one in place. Both belong to one backward pass, or ``retain_graph`` is needed.
    """
    if is_compiling() or not are_gradients_asked_for(y):
        return y, y
    again = _again_of.pop(y, None)
    if again is None or not _is_untouched(y, again):
        return y, y
    return y, again.y


def _is_untouched(y: Tensor, again: _Again) -> bool:
    """Return whether nothing has changed y or its memory since, and nothing wants all of its gradient."""
    # The version first: after a change torch refuses to say more of what was returned beside y.
    return y._version == again.version and share_memory(again.y, y) and not y._backward_hooks and not y.retains_grad
