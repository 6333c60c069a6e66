"""Let torch.fx record the parts of a backbone."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.fx import Proxy, Tracer

_Forward = TypeVar("_Forward", bound=Callable[..., Tensor])


def one_node(forward: _Forward) -> _Forward:
    """Let torch.fx record a call of a module as one node, which calls the module.

    What is inside asks for shapes, dtypes and addresses, which a proxy does not have.

    Args:
        forward: Method of the module. It raises TypeError where the module itself is what torch.fx traces.
    """

    @wraps(forward)
    def call(module: Any, *inputs: Any, **named: Any) -> Any:
        # Lists: torch.compile of torch 2.1 cannot trace a generator.
        tracers = [each.tracer for each in (*inputs, *named.values()) if isinstance(each, Proxy)]
        if not tracers:
            return forward(module, *inputs, **named)
        path = tracers[0].path_of_module(module) if isinstance(tracers[0], Tracer) else None
        if not path:
            raise TypeError(
                f"{type(module).__name__} is one node to torch.fx, and cannot be traced alone; trace the backbone"
            )
        return tracers[0].create_proxy("call_module", path, inputs, named)

    return cast(_Forward, call)
