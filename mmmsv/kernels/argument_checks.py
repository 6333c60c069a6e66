"""What the public functions check alike."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from mmmsv.compat.torch_versions import is_autocast_enabled, is_compiling, is_traced_early

# Types of tensors that mean their memory.
PLAIN = (Tensor, Parameter)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def state_dtype(u: Tensor) -> torch.dtype:
    """Return the dtype of states and sums over a tensor."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def check_tensors(op: str, per_token: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """Refuse what is no strided floating-point tensor, carries a tangent, or is on another device than the first."""
    first, given = next(iter(per_token)), {**per_token, **weights}
    device, may_be_dual = None, forward_ad._current_level >= 0
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} is a {type(tensor).__name__}, expected a torch.Tensor")
        if tensor.dtype not in _FLOATS:
            raise TypeError(f"{op}: {name} is {tensor.dtype}, expected one of float16, bfloat16, float32, float64")
        if tensor.layout != torch.strided or tensor.is_nested:
            raise TypeError(
                f"{op}: {name} is sparse or nested ({tensor.layout}), expected an ordinary (strided) tensor"
            )
        if may_be_dual and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{op} has no forward-mode derivative, and {name} carries a tangent (jvp)")
        device = device or tensor.device
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device} and {first} on {device}; move both to one device")


def check_bool(op: str, name: str, value: bool) -> None:
    """Refuse what is no bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, expected True or False")


def one_dtype(op: str, per_token: dict[str, Tensor]) -> list[Tensor]:
    """Return the tensors in one dtype: under autocast the widest of theirs, since it leaves them in different ones."""
    (first, u), *others = per_token.items()
    kind, tensors = u.device.type, list(per_token.values())
    different = [name for name, tensor in others if tensor.dtype != u.dtype]
    if not different:
        return tensors
    if kind != "meta" and is_autocast_enabled(kind):
        # float16 and bfloat16 together are float32, too.
        widest = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        return [tensor.to(widest) for tensor in tensors]
    name = different[0]
    raise TypeError(f"{op}: {name} is {per_token[name].dtype} and {first} is {u.dtype}; cast one")


def is_transformed() -> bool:
    """Tell whether a transform of torch.func, or a forward-mode derivative, is going on."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_only_computed(*tensors: Tensor | None) -> bool:
    """Tell whether nobody needs to know what is computed, so that addresses may be passed on past torch's dispatcher.

    That is: no derivative of either kind, no program that is recorded, no counter or other mode, no transform of
    torch.func, no subclass, and no tensor that stands for another one, as a conjugate or as zeros without memory.
    """
    if (
        is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or is_traced_early()
        or is_transformed()
    ):
        return False
    with_gradients = torch.is_grad_enabled()
    for each in tensors:  # no generator: this stands in front of every op, and one would take as long as the rest
        if each is not None and (
            type(each) not in PLAIN or each.is_neg() or each._is_zerotensor() or (with_gradients and each.requires_grad)
        ):
            return False
    return True
