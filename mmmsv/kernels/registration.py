"""How an op becomes one of torch's: schema, implementation, fake kernel, autograd and vmap.

By dispatch key, as C++ extensions register theirs: of torch's ways, the one that has been the same since 2.1.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from typing import Any, NoReturn, Protocol, TypeAlias, get_type_hints

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import Function

from mmmsv.compat.torch_versions import is_compiling

from .argument_checks import one_dtype, state_dtype
from .bypass import (
    are_gradients_asked_for,
    is_profiled,
    is_recorded_plainly,
    is_transformed,
    is_unobserved,
    may_carry_tangents,
)
from .dispatch import BACKENDS, Backend, Implementation, Kernel, select
from .readers import is_branched, remember
from .strides import laid_out_as

Pick: TypeAlias = Callable[[Backend], Implementation | None]
# Gradients that a backward pass adds to dy and dx: of y and of x as they were returned again (readers.py).
_ADDED = ("dy_again", "dx_again")
_LIBRARY = torch.library.Library("mmmsv", "DEF")
_SCHEMA = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[int]: "int[]",
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    torch.dtype: "ScalarType",
    torch.dtype | None: "ScalarType?",
}


class Arguments(Protocol):
    """A tuple of :mod:`.arguments`."""

    def new_results(self) -> tuple[Tensor, ...]: ...


class Op:
    """An op that the backends compute, known to torch as ``mmmsv::{name}`` and ``mmmsv::{name}_backward``.

    Args:
        name: Of the op.
        arguments: Class of its arguments, tensors first, whose fields are the schema.
        maps: Number of tensors that are maps; the others are weights.
        pick: Reads the op off a backend.
        results: Names of its results, y first.
        adds: Whether the backward passes of its kernels add the gradients that others give to y and to its first
            argument, x; then y is the only result.
    """

    def __init__(
        self,
        name: str,
        arguments: Callable[..., Arguments],
        maps: int,
        pick: Pick,
        results: tuple[str, ...] = ("y",),
        adds: bool = False,
    ) -> None:
        kinds = get_type_hints(arguments)
        self._name, self._arguments, self._maps, self._pick = name, arguments, list(kinds)[:maps], pick
        self._fields, self._added = len(kinds), _ADDED if adds else ()
        self._count = count = sum(kind in (Tensor, Tensor | None) for kind in kinds.values())
        self._results = len(results)
        self._composite_backend = _naming_composites(pick)
        schema = ", ".join(f"{_SCHEMA[kind]} {field}" for field, kind in kinds.items())
        returned = ", ".join(f"Tensor {result}" for result in results)
        self._op = _define(name, f"({schema}) -> ({returned}, Tensor kept)")
        given = ", ".join(f"Tensor? d{result}" for result in results)
        gradients = ", ".join(["Tensor"] * count)
        added = "".join(f", Tensor? {gradient}=None" for gradient in self._added)
        backward_op = _define(f"{name}_backward", f"({given}, Tensor kept, {schema}{added}) -> ({gradients})")
        once = _differentiable_once(name, backward_op)
        forward = _shortcut(partial(_below_autograd, self._op), self._forward)
        backward = _shortcut(_seen_by_transforms(backward_op, once), self._backward)
        differentiable = _differentiable(name, count, len(results), forward, backward)
        # Function.apply itself looks at the signature of a function each time, in case that a transform is active.
        # pyrefly: ignore[missing-attribute]: torch's base class in C++ has it
        self._recorded = super(Function, differentiable).apply
        self._observed = _seen_by_transforms(self._op, differentiable)
        self._read_twice = _function_of_two_readers(name, count, forward, backward) if adds else None
        _implement(self._op, self._forward, self._fake_forward, differentiable, name)
        _implement(backward_op, self._backward, self._fake_backward, once, name)

    def __call__(self, *values: Any) -> Any:
        """Compute the result of the arguments, or a tuple of several, by a function of PyTorch's ops or by a kernel."""
        implementation = self.implementation(values[0])
        if implementation is not None and not isinstance(implementation, Kernel):
            return implementation(*values)
        cast = self._cast(*values)
        if implementation is not None and is_unobserved(*cast[: self._count]) and not is_profiled():
            # The shortcut past the dispatcher: bypass.py says when, and what it gains.
            *results, _ = implementation.forward(self._arguments(*cast))
        elif implementation is not None and is_recorded_plainly(*cast[: self._count]):
            if self._read_twice:
                # Not by the dispatcher: an op that it knows must not return what shares memory with its input.
                y, y_again, x_again = self._read_twice.apply(is_branched(cast[0]), *cast)
                remember(y, y_again, x_again)
                return y
            *results, _ = self._recorded(*cast)
        else:
            *results, _ = self._observed(*cast)
        return tuple(results) if self._results > 1 else results[0]

    def implementation(self, x: Tensor) -> Implementation | None:
        """Return what computes the op for a tensor like x; in a program that is recorded, None if that is a kernel."""
        is_tracing = torch.jit.is_tracing()
        if not (is_tracing or is_compiling()):
            return select(self._pick, x.device)
        name = self._composite_backend(x.device.type, is_tracing)
        return None if name is None else self._pick(BACKENDS[name])

    def _cast(self, *values: Any) -> list[Any]:
        """Return the arguments as kernels take them: maps in one dtype, weights in that of sums over them."""
        cast, maps = list(values), [value for value in values[: len(self._maps)] if value is not None]
        if [each for each in maps[1:] if each.dtype != maps[0].dtype]:
            # Of the maps, only the last one may be missing.
            cast[: len(maps)] = one_dtype(self._name, dict(zip(self._maps, maps, strict=False)))
        dtype = state_dtype(cast[0])
        for place in range(len(self._maps), self._count):
            if values[place] is not None and values[place].dtype != dtype:
                cast[place] = values[place].to(dtype)
        return cast

    def _kernel(self, x: Tensor) -> Kernel:
        return select(lambda backend: kernel if isinstance(kernel := self._pick(backend), Kernel) else None, x.device)

    def _forward(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        *results, kept = self._kernel(x).forward(self._arguments(x, *others))
        return *results, kept.flatten()

    def _fake_forward(self, *values: Any) -> tuple[Tensor, ...]:
        return self._arguments(*values).new_results()

    # A schema has no optional results: an empty tensor is the gradient of a tensor that was not given.
    def _backward(self, *given: Any) -> tuple[Tensor, ...]:
        dy, *others = given[: self._results]
        kept, *values = given[self._results :]
        tensors, arguments = values[: self._count], self._arguments(*values[: self._fields])
        added = dict(zip_longest(self._added, values[self._fields :]))  # the dispatcher leaves None out at the end
        if dy is None:  # nothing has used y, but another result
            dy = torch.zeros_like(arguments.new_results()[0])
        gradients = tuple(self._kernel(kept).backward(arguments, dy, *others, kept, **added))
        each = zip(tensors, gradients, strict=False)
        if len(gradients) != len(tensors) or not all(x is None or isinstance(dx, Tensor) for x, dx in each):
            returned, wanted = (
                ["tensor" if one is not None else "None" for one in ones] for ones in (gradients, tensors)
            )
            raise TypeError(f"{self._name}: a kernel's backward returned {returned}, for {wanted}; return one for each")
        return tuple(
            kept.new_empty(0) if x is None else laid_out_as(x, dx) for x, dx in zip(tensors, gradients, strict=True)
        )

    def _fake_backward(self, *given: Any) -> tuple[Tensor, ...]:
        kept, *values = given[self._results :]
        return tuple(
            kept.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in values[: self._count]
        )


def _naming_composites(pick: Pick) -> Callable[[str, bool], str | None]:
    """Return a function that names the backend whose composite computes an op; None where a kernel does."""

    def with_composite(backend: Backend) -> Backend | None:
        return None if isinstance(pick(backend), (type(None), Kernel)) else backend

    @torch.compiler.assume_constant_result  # which takes names, and neither methods nor functions for results
    def name(device_type: str, is_tracing: bool) -> str | None:
        device = torch.device(device_type)
        # A program that torch.jit records has torch's own ops, where it can: counters of FLOPs and exporters know them.
        if is_tracing and any(map(with_composite, BACKENDS.values())):
            return select(with_composite, device).name
        backend = select(lambda backend: None if pick(backend) is None else backend, device)
        kernel = pick(backend)
        if not isinstance(kernel, Kernel):
            return backend.name
        return select(with_composite, device).name if kernel.yields_to_compilers else None

    return name


def define_result_only(
    name: str,
    schema: str,
    forward: Callable[..., Tensor],
    fake_forward: Callable[..., Tensor],
    instead: Callable[..., Tensor],
) -> OpOverload:
    """Register ``mmmsv::{name}`` for programs that ask for its result alone.

    Args:
        name: Of the op.
        schema: Its arguments.
        forward: Computes, from these arguments, the result.
        fake_forward: As ``forward``, without computing.
        instead: Computes the same with ops of torch, where derivatives are asked for, or under vmap.
    """
    op = _define(name, f"({schema}) -> Tensor")

    def without_derivatives(*values: Tensor | None) -> Tensor:
        if are_gradients_asked_for(*values) or may_carry_tangents():
            return instead(*values)
        return _below_autograd(op, *values)

    _LIBRARY.impl(op, forward, "CPU")
    _LIBRARY.impl(op, fake_forward, "Meta")
    _LIBRARY.impl(op, without_derivatives, "Autograd")
    _LIBRARY.impl(op, instead, "FuncTorchBatched")
    return op


def _define(name: str, signature: str) -> OpOverload:
    _LIBRARY.define(name + signature)
    return getattr(torch.ops.mmmsv, name).default


def _below_autograd(op: OpOverload, *values: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op(*values)


def _implement(
    op: OpOverload, compute: Callable[..., tuple], fake: Callable[..., tuple], function: type[Function], name: str
) -> None:
    def with_gradients(*values: Any) -> tuple[Tensor, ...]:
        if are_gradients_asked_for(*values):
            return function.apply(*values)
        return _below_autograd(op, *values)

    _LIBRARY.impl(op, compute, "CompositeExplicitAutograd")
    _LIBRARY.impl(op, fake, "Meta")
    _LIBRARY.impl(op, with_gradients, "Autograd")
    _implement_vmap(op, name)


def _implement_vmap(op: OpOverload, name: str) -> None:
    """Compute an op under vmap one sample after the other: its kernels take one set of weights at a time."""

    def one_by_one(info: Any, in_dims: tuple, *values: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        # Where a value is a list, its place in in_dims is one, too.
        dims = [dim if isinstance(value, Tensor) else None for value, dim in zip(values, in_dims, strict=True)]
        results = [
            op(*(value if dim is None else value.select(dim, i) for value, dim in zip(values, dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(each) for each in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    def refuse(*_: object) -> NoReturn:
        raise NotImplementedError(
            f"mmmsv::{name} works under torch.func.vmap from torch 2.5 on, and this is torch {torch.__version__}; it "
            "takes a batch: put the axis there, without vmap"
        )

    if hasattr(torch.library, "register_vmap"):
        torch.library.register_vmap(op, one_by_one, lib=_LIBRARY)
    else:
        _LIBRARY.impl(op, refuse, "FuncTorchBatched")


def _seen_by_transforms(op: OpOverload, function: type[Function]) -> Callable[..., tuple]:
    """Return a function that computes an op, by its autograd function where torch.func transforms the call.

    A transform knows what an autograd function does, and would call one within the op too late.
    """

    def computed(*values: Any) -> tuple[Tensor, ...]:
        return function.apply(*values) if not is_compiling() and is_transformed() else op(*values)

    return computed


def _shortcut(op: Callable[..., tuple], compute: Callable[..., tuple]) -> Callable[..., tuple]:
    """Return a function that computes an op for autograd, past the dispatcher where nothing else observes it."""

    def computed(*values: Any) -> tuple[Tensor, ...]:
        if is_profiled() or not is_unobserved(*[value for value in values if isinstance(value, Tensor)]):
            return op(*values)
        with torch._C._AutoDispatchBelowAutograd():
            return compute(*values)

    return computed


def _differentiable(
    name: str, count: int, results: int, compute: Callable[..., tuple], compute_backward: Callable[..., tuple]
) -> type[Function]:
    """Make the autograd function of an op whose first ``count`` arguments are tensors."""

    class Differentiable(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*values: Any) -> tuple[Tensor, ...]:
            return compute(*values)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
            ctx.options = inputs[count:]
            ctx.save_for_backward(output[-1], *inputs[:count])
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(output[-1])

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            of_results = gradients[:results]
            if not any(gradient is not None for gradient in of_results):
                return (None,) * (count + len(ctx.options))
            kept, *tensors = ctx.saved_tensors
            computed = compute_backward(*of_results, kept, *tensors, *ctx.options)
            return (*_of_given(tensors, computed), *(None for _ in ctx.options))

        @staticmethod
        def jvp(ctx: Any, *_: Tensor) -> NoReturn:
            raise NotImplementedError(f"mmmsv::{name} has no forward-mode derivative (jvp, jacfwd); take jacrev or vjp")

    return type(name, (Differentiable,), {})


def _differentiable_once(name: str, backward_op: OpOverload) -> type[Function]:
    """Make the autograd function of the backward pass of an op."""

    class DifferentiableOnce(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*values: Any) -> tuple[Tensor, ...]:
            return _below_autograd(backward_op, *values)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
            """Keep nothing: there is no derivative."""

        @staticmethod
        def backward(ctx: Any, *_: Tensor) -> NoReturn:
            raise NotImplementedError(f"mmmsv::{name} has first derivatives only, not second ones (double backward)")

        jvp = backward

    return type(f"{name}_backward", (DifferentiableOnce,), {})


def _function_of_two_readers(
    name: str, count: int, compute: Callable[..., tuple], compute_backward: Callable[..., tuple]
) -> type[Function]:
    """Make the autograd function that computes y of an op, and returns y, y again, and the first argument, x, again.

    What reads them again gives gradients of its own, which the backward pass of the op adds. In the place of an x that
    has no gradient, or that is not branched off, as the first argument says, is None.
    """

    class ReadTwice(Function):
        @staticmethod
        def forward(ctx: Any, branched: bool, x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor | None]:
            y, kept = compute(x, *others)
            ctx.options = others[count - 1 :]
            ctx.save_for_backward(kept, x, *others[: count - 1])
            ctx.set_materialize_grads(False)
            # A view, so that torch refuses to change one y in place while the other is read; one of y would keep it.
            return y, y.detach().view_as(y), x if branched and x.requires_grad else None

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
            dy, dy_again, dx_again = gradients
            nothing = (None,) * len(ctx.options)
            if dy is None:
                dy, dy_again = dy_again, None
            if dy is None:  # only x was read
                return None, dx_again, *(None,) * (count - 1), *nothing
            kept, *tensors = ctx.saved_tensors
            computed = compute_backward(dy, kept, *tensors, *ctx.options, dy_again, dx_again)
            return None, *_of_given(tensors, computed), *nothing

    return type(f"{name}_read_twice", (ReadTwice,), {})


def _of_given(tensors: list[Tensor | None], gradients: tuple[Tensor, ...]) -> Iterator[Tensor | None]:
    return (None if tensor is None else gradient for tensor, gradient in zip(tensors, gradients, strict=True))
