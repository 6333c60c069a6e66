"""Maps with two readers: the kernels add the gradients of both, and they are those that autograd would add."""

import pytest
import torch

from mmmsv.kernels import BACKENDS, branch_off, read_twice, use_backend
from mmmsv.kernels.dispatch import Kernel

from .fused_inputs import conv_inputs, needs_library, normal
from .reader_cases import CASES, assert_same, norm, plain_branch_off, plain_read_twice
from .scan_inputs import INTERPRETED, RUNNABLE, TOLERANCE, device_of

READERS = [("y", "y2", "x"), ("y", "x"), ("y", "y2"), ("y2", "x"), ("y2",), ("x",)]


def cases():
    """Each op on each backend that has a kernel of it and can run here; an interpreter has few."""
    for backend in RUNNABLE:
        for name, case in CASES.items():
            if isinstance(getattr(BACKENDS[backend], case.function.__name__), Kernel):
                marks = [pytest.mark.slow] if backend in INTERPRETED else []
                yield pytest.param(backend, case, id=f"{backend}-{name}", marks=marks)


def losses(maps, read):
    """Of each reader another one: the gradient of y2 lies otherwise in memory, that of x has none of its own."""
    weights = [normal(*maps["y"].shape, seed=seed).to(maps["y"]) for seed in (2, 3)]
    made = {
        "y": lambda y: (y * weights[0]).sum(),
        "y2": lambda y: (y.permute(0, 3, 1, 2).contiguous() * weights[1].permute(0, 3, 1, 2)).sum(),
        "x": lambda x: x.sum(),
    }
    return sum(made[name](maps[name]) for name in read)


def gradients(case, tensors, read, trained=(True, True, True), plain=False):
    """Return the gradients of the tensors, where parts of the maps are read; None where there is none."""
    leaves = [
        None if each is None else each.detach().clone().requires_grad_(train)
        for each, train in zip(tensors, trained, strict=True)
    ]
    x = leaves[0] * 1 if trained[0] else leaves[0]  # not a leaf, as in a model
    x_again, y = (plain_branch_off if plain else branch_off)(case.layer(leaves), x)
    y, y2 = (plain_read_twice if plain else read_twice)(y)
    assert plain or y2 is not y
    assert plain or (x_again is not x) == trained[0]
    return torch.autograd.grad(
        losses({"x": x_again, "y": y, "y2": y2}, read),
        [each for each in leaves if each is not None and each.requires_grad],
        allow_unused=True,
    )


@pytest.mark.parametrize("read", READERS, ids="-".join)
@pytest.mark.parametrize(("backend", "case"), list(cases()))
def test_gradients(backend, case, read):
    tensors = [None if each is None else each.to(device_of(backend)) for each in case.tensors(torch.float64)]
    with use_backend(backend):
        ours = gradients(case, tensors, read)
    with use_backend("torch"):
        assert_same(ours, gradients(case, tensors, read, plain=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("backend", "case"), list(cases()))
def test_narrow_dtypes(backend, case, dtype):
    """What the kernels add is rounded once."""
    tensors = [None if each is None else each.to(device_of(backend)) for each in case.tensors(dtype)]
    exact = [None if each is None else each.double() for each in tensors]
    with use_backend(backend):
        ours = gradients(case, tensors, READERS[0])
    with use_backend("torch"):
        theirs = gradients(case, exact, READERS[0], plain=True)
    assert [each.dtype for each in ours] == [each.dtype for each in tensors if each is not None]
    assert_same([each.double() for each in ours], theirs, 3 * TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.skipif("triton" not in RUNNABLE, reason="there is no Triton here")
def test_a_norm_that_gives_another_dtype(dtype):
    """The gradients of y are in its dtype, and what is added to that of x in x's."""
    other = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}[dtype]
    case = norm((2, 3, 5, 16), other)
    tensors = [each.to(device_of("triton")) for each in case.tensors(dtype)]
    with use_backend("triton"):
        ours, theirs = (gradients(case, tensors, READERS[0], plain=plain) for plain in (False, True))
    assert_same(ours, theirs, 6 * TOLERANCE[torch.bfloat16])


@needs_library
@pytest.mark.parametrize("trained", [(True, False, False), (False, True, True), (False, False, True)])
@pytest.mark.parametrize("read", READERS[:2], ids="-".join)
def test_some_are_not_trained(read, trained):
    case = CASES["conv_7x7-stride"]
    both = [gradients(case, case.tensors(torch.float64), read, trained, plain) for plain in (False, True)]
    assert_same(*both)


@needs_library
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_there_is_one_map(mode):
    x, *weights = conv_inputs((1, 4, 5, 8), 3)
    weights[0].requires_grad_()
    with mode():
        x_again, y = branch_off(CASES["conv_3x3"].layer((x, *weights)), x)
        assert x_again is x
        assert read_twice(y) == (y, y)
