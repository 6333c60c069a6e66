"""THE SHORTCUT past torch's dispatcher: when it may be taken. The private functions of torch that it needs are here.

Where nothing observes a call, :mod:`.registration` calls the kernel instead of the op, and backend ``torch`` takes
oneDNN's product, which has no derivative. For the kernels, that saves 4 to 5 % of the time of a whole model under
``torch.no_grad``, as MMEngine tests, and 2.4 % under ``torch.inference_mode``: Nano, one image of 224 x 224, two cores
of a Zen 4 with AVX-512, torch 2.11. Where autograd alone observes it, an op may return a map again (readers.py).
"""

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from mmmsv.compat.torch_versions import is_compiling, is_traced_early

# Types of tensors that mean their memory.
PLAIN = (Tensor, Parameter)


def may_carry_tangents() -> bool:
    """Return whether a forward-mode derivative is being computed."""
    return forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Return whether a transform of torch.func, a forward-mode derivative or a batch of gradients is computed."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or may_carry_tangents()
        # The vmap of torch.autograd.grad(is_grads_batched=True), which is not that of torch.func.
        or torch._C._dispatch_tls_is_dispatch_key_included("VmapMode")
    )


def is_profiled() -> bool:
    """Return whether a profiler is on, which shows only what comes through the dispatcher."""
    return torch.autograd._profiler_enabled()


def are_gradients_asked_for(*values: object) -> bool:
    """Return whether autograd records a call with these arguments."""
    if torch.is_grad_enabled():
        for each in values:  # no generator: torch.compile of torch 2.1 cannot trace one
            if isinstance(each, Tensor) and each.requires_grad:
                return True
    return False


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors lie in one memory."""
    # pyrefly: ignore[missing-attribute]: torch has it, and does not annotate it
    return torch._C._is_alias_of(one, other)


def is_recorded_plainly(*tensors: Tensor | None) -> bool:
    """Return whether autograd records a call, and nothing else does that cares how its results share memory.

    That is: no program that is recorded, no transform of torch.func and nothing left over from one, no forward-mode
    derivative, and no subclass, but for fake tensors, which stand for plain ones.
    """
    if not are_gradients_asked_for(*tensors) or _is_traced():
        return False
    return all(
        each is None
        or (type(each) in PLAIN and not torch._C._functorch.is_gradtrackingtensor(each))
        or isinstance(each, FakeTensor)
        for each in tensors
    )


def _is_traced() -> bool:
    """Return whether a program is recorded, or transformed."""
    return is_compiling() or torch.jit.is_tracing() or is_traced_early() or is_transformed()


def is_unobserved(*tensors: Tensor | None) -> bool:
    """Return whether nothing observes a call, so that it may pass addresses on instead of tensors.

    That is: no derivative of either kind, no program that is recorded, no counter or other mode, no transform of
    torch.func, no subclass, and no tensor that represents another one, as a conjugate or as zeros without memory.
    """
    if _is_traced() or torch._C._len_torch_dispatch_stack():
        return False
    with_gradients = torch.is_grad_enabled()
    for each in tensors:  # no generator: this comes before every op, and one would take as long as the rest
        if each is not None and (
            type(each) not in PLAIN or each.is_neg() or each._is_zerotensor() or (with_gradients and each.requires_grad)
        ):
            return False
    return True
