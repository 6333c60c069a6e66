"""Every backend against the float64 oracle: one matrix of dtypes, sizes, routes and gradients."""

import dataclasses
import itertools
import math

import pytest
import torch

from mmmsv.kernels import BACKENDS, scan, scan2d, use_backend
from mmmsv.kernels.arguments import choose_chunk

from ..simulator import SIMULATED
from .scan_inputs import (
    INTERPRETED,
    MAP_NAMES,
    NAMES,
    RUNNABLE,
    SLOW_WHERE_INTERPRETED,
    TOLERANCE,
    MapCase,
    assert_near,
    device_of,
    exact,
    exact_map,
    loss,
    run,
    run_map,
    scan_inputs,
)

FULL = [name for name in RUNNABLE if name != "reference" and name not in INTERPRETED]
F64, F32, BF16, F16 = TOLERANCE
ROUTES = {
    "one": {"routes": ("row",)},
    "one_back": {"routes": ("col_rev",)},
    "carried": {"routes": ("row_rev", "col", "col_rev"), "carry": True, "merge": False},
    "carried_sum": {"routes": ("col", "row"), "carry": True},
    "four_sets": {"routes": ("row", "col", "row_rev", "col_rev"), "sets": 4},
    "shared_apart": {"routes": ("col_rev", "row"), "merge": False},
}


def matrix(*axes, interpreted=(), marks=pytest.mark.slow):
    """All combinations of the axes for each backend; of those, where Triton is interpreted, a choice for it.

    The interpreter takes a second where a GPU takes microseconds.
    """
    few = [pytest.param(name, *choice, marks=marks) for name in INTERPRETED for choice in interpreted]
    return [*itertools.product(FULL, *axes), *few]


def tolerance(backend, dtype):
    # The interpreter cuts bfloat16 off where a GPU rounds it.
    return TOLERANCE[dtype] * (2 if backend in INTERPRETED and dtype == BF16 else 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_is_tested(backend):
    if backend not in RUNNABLE:
        pytest.skip(f"{backend} cannot run here: {BACKENDS[backend].why_not(torch.device('cpu'))}")


def check(backend, case):
    inputs = case.inputs()
    for name, ours, theirs in zip(
        ("y", *MAP_NAMES), run_map(backend, inputs, case.options), exact_map(case, backend), strict=True
    ):
        y_dtype = case.y_dtype or case.dtype
        assert ours.dtype == (y_dtype if name == "y" else inputs[name].dtype), name
        assert_near(ours, theirs, tolerance(backend, y_dtype if name == "y" else case.dtype), name)


@pytest.mark.parametrize(
    ("backend", "routes", "size", "state", "dtype"),
    matrix(
        ROUTES,
        [(1, 1), (1, 7), (5, 3)],
        [1, 2, 16],
        TOLERANCE,
        interpreted=[
            ("one", (1, 7), 16, F32),
            ("one", (5, 3), 2, F16),
            ("carried", (1, 1), 1, F32),
            ("carried", (5, 3), 2, BF16),
            ("carried_sum", (5, 3), 1, F16),
            ("carried_sum", (1, 7), 2, F64),
            ("four_sets", (5, 3), 1, F32),
            ("four_sets", (1, 1), 3, BF16),
            ("shared_apart", (5, 3), 2, F32),
        ],
        marks=(),
    ),
)
def test_small_maps(backend, routes, size, state, dtype):
    check(backend, MapCase(size=size, state=state, dtype=dtype, **ROUTES[routes]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "routes", "numbers", "size", "dim"),
    matrix(
        ["carried", "four_sets"],
        [(1, F32), (2, BF16), (16, F64)],
        [(13, 31) if SIMULATED else (33, 101)],
        [3],
        interpreted=[("one_back", (1, F32), (7, 41), 128)],  # three spans of two chunks, the last a part of one
    ),
)
def test_large_odd_map(backend, routes, numbers, size, dim):
    state, dtype = numbers
    check(backend, MapCase(size=size, dim=dim, state=state, batch=1, rank=1, dtype=dtype, **ROUTES[routes]))


@pytest.mark.parametrize(
    ("backend", "dim", "numbers", "size"),
    matrix(
        [1, 3, 193],
        [(1, F32), (13, BF16), (48, F32)],
        [(9, 10)],
        interpreted=[(1, (13, F32), (3, 4)), (97, (1, F32), (3, 4)), (3, (48, F32), (1, 3))],
    ),
)
def test_channels_and_ranks(backend, dim, numbers, size):
    """Fewer channels than a register or a block holds, one more than a multiple of them; ranks around a multiple."""
    rank, dtype = numbers
    check(backend, MapCase(size=size, dim=dim, rank=rank, dtype=dtype, **ROUTES["carried"]))


@pytest.mark.parametrize(
    ("backend", "routes", "dtype"),
    matrix(ROUTES, [BF16, F16], interpreted=[("carried", F16), ("carried_sum", BF16), ("four_sets", F16)]),
)
def test_y_in_the_dtype_of_the_state(backend, routes, dtype):
    check(backend, MapCase(size=(5, 4), state=2, dtype=dtype, y_dtype=torch.float32, **ROUTES[routes]))


@pytest.mark.parametrize(("backend", "batch"), matrix([3, 9], interpreted=[(3,)]))
def test_images_do_not_mix(backend, batch):
    check(backend, MapCase(batch=batch, dtype=torch.float32, **ROUTES["four_sets"]))


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize("empty", [{"batch": 0}, {"size": (0, 3)}, {"size": (3, 0)}])
@pytest.mark.parametrize("routes", ["carried", "four_sets"])
def test_empty_maps(backend, empty, routes):
    case = dataclasses.replace(MapCase(state=2, dtype=torch.float32, **ROUTES[routes]), **empty)
    y, *gradients = run_map(backend, case.inputs(), case.options)
    assert y.numel() == 0
    for (name, tensor), gradient in zip(case.inputs().items(), gradients, strict=True):
        assert gradient.shape == tensor.shape, name
        assert not gradient.any(), name


@pytest.mark.parametrize(("backend", "routes"), matrix(["carried", "four_sets"], interpreted=[("carried",)]))
def test_map_strides_do_not_matter(backend, routes):
    """Channels first, every second element, and expanded inputs give what contiguous ones give."""
    case = MapCase(size=(3, 5), dim=17, state=2, dtype=torch.float32, **ROUTES[routes])
    plain = {name: tensor.detach().to(device_of(backend)) for name, tensor in case.inputs().items()}
    strided = {name: torch.stack((tensor, -tensor), -1)[..., 0] for name, tensor in plain.items()}
    turned = {name: tensor.transpose(0, -1).contiguous().transpose(0, -1) for name, tensor in plain.items()}
    same = {**plain, "dt": plain["dt"][:1].expand_as(plain["dt"]), "x": plain["x"][:, :, :1].expand_as(plain["x"])}
    copied = {name: tensor.contiguous() for name, tensor in same.items()}
    with use_backend(backend):
        for expected, *layouts in ((plain, strided, turned), (copied, same)):
            contiguous = run_map(backend, expected, case.options)
            for layout in layouts:
                for ours, theirs in zip(run_map(backend, layout, case.options), contiguous, strict=True):
                    assert_near(ours, theirs, 1e-6)


@pytest.mark.parametrize(
    ("backend", "numbers", "length", "dtype"),
    matrix(
        [(1, 1), (2, 3), (16, 2)],
        [1, 15, 64, 65, 257],
        TOLERANCE,
        interpreted=[((1, 1), 65, F32), ((2, 3), 15, F64), ((5, 2), 1, BF16), ((2, 3), 17, F16)],
        marks=(),
    ),
)
def test_sequences(backend, numbers, length, dtype):
    state, groups = numbers
    inputs = scan_inputs(length=length, state=state, groups=groups, dtype=dtype)
    for name, ours, theirs in zip(("y", *NAMES), run(backend, inputs), run("reference", exact(inputs)), strict=True):
        assert ours.dtype == (inputs["u"].dtype if name == "y" else inputs[name].dtype)
        assert_near(ours, theirs, tolerance(backend, dtype), name)


@pytest.mark.parametrize("backend", FULL)
def test_one_long_sequence(backend):
    """No error that grows with the length; where Triton is interpreted, test_more_spans_than_a_tile has one too."""
    inputs = scan_inputs(batch=1, dim=2, length=4099, dtype=torch.float32)
    with torch.no_grad():
        inputs["A"].mul_(1e-3)  # a memory of thousands of tokens
    for name, ours, theirs in zip(("y", *NAMES), run(backend, inputs), run("reference", exact(inputs)), strict=True):
        assert_near(ours, theirs, TOLERANCE[torch.float32], name)


@pytest.mark.parametrize(
    ("backend", "rate", "bias", "size"),
    matrix(
        [-1e-7, -1.0, -1e4, 1e-3],
        [-60.0, -20.0, 0.0, 60.0, 1e3],
        [(9, 10)],
        interpreted=[(-1e4, 1e3, (5, 6)), (-1e-7, -60.0, (5, 6)), (1e-3, 60.0, (5, 6)), (-1.0, -20.0, (5, 6))],
    ),
)
def test_extreme_rates_and_steps(backend, rate, bias, size):
    """Decays from exactly 0 to 1 and a little above, steps from 1e-26 (all but no input) to 1000 (no softplus)."""
    case = MapCase(size=size, state=2, batch=1, dtype=torch.float32, **ROUTES["carried"])
    inputs = case.inputs()
    with torch.no_grad():
        inputs["A"].fill_(rate)
        inputs["b_dt"].fill_(bias)
        if rate > 0:
            inputs["A"].div_(max(bias, 1))
    expected = run_map("reference", exact(inputs), case.options)
    for name, ours, theirs in zip(("y", *MAP_NAMES), run_map(backend, inputs, case.options), expected, strict=True):
        assert ours.isfinite().all(), name
        assert_near(ours, theirs, TOLERANCE[torch.float32], name)


@pytest.mark.parametrize(
    ("backend", "bad", "name", "size"),
    matrix(
        [math.nan, math.inf, -math.inf],
        ["x", "dt", "B", "C", "b_dt"],
        [(9, 10)],
        interpreted=[(math.nan, "x", (6, 8)), (math.inf, "dt", (6, 8)), (-math.inf, "C", (6, 8))],  # three spans
    ),
)
def test_what_is_not_finite_stays_where_it_belongs(backend, name, bad, size):
    """One NaN or infinity: the same outputs and gradients as the oracle's are hit, the others are as exact as ever."""
    case = MapCase(size=size, dim=5, state=2, dtype=torch.float32, **ROUTES["carried"])
    inputs = {key: tensor.detach() for key, tensor in case.inputs().items()}
    inputs[name][(0, 4, 5, 0, 1)[: inputs[name].dim()] if name != "b_dt" else (0, 3)] = bad
    expected = run_map("reference", inputs, case.options)
    assert expected[0].isfinite().any()
    for key, ours, theirs in zip(("y", *MAP_NAMES), run_map(backend, inputs, case.options), expected, strict=True):
        finite = theirs.isfinite()
        assert torch.equal(ours.isfinite(), finite), key
        assert_near(ours[finite], theirs[finite], TOLERANCE[torch.float32], key)


@pytest.mark.parametrize("first", [name for name in FULL if device_of(name).type == "cpu"])
@pytest.mark.parametrize("backend", SLOW_WHERE_INTERPRETED)
def test_a_backward_pass_goes_on_from_any_forward_pass(first, backend, monkeypatch):
    """The kept states mean the same to all backends."""
    monkeypatch.setattr(scan, "choose_chunk", choose_chunk)  # in the simulator the chunks are those of a GPU
    case = MapCase(size=(5, 7), state=2, dtype=torch.float32, **ROUTES["carried"])
    if device_of(backend).type != "cpu":
        pytest.skip("on a GPU the others run there too: test_gpu_equals_cpu")
    inputs = case.inputs()
    with use_backend(first):
        y = scan2d(**inputs, **case.options)
    with use_backend(backend):
        gradients = torch.autograd.grad(loss(y), list(inputs.values()))
    for name, ours, theirs in zip(MAP_NAMES, gradients, exact_map(case)[1:], strict=True):
        assert_near(ours, theirs, TOLERANCE[torch.float32], name)


@pytest.mark.parametrize(
    ("backend", "routes"), [("reference", "carried"), *matrix(["carried", "four_sets"], interpreted=[("carried",)])]
)
def test_bit_for_bit(backend, routes):
    """Two runs, and one and two threads, give the same bits, gradients too.

    But for backend torch, where the number of threads decides which elements of a PyTorch operation are left over by
    its vectors, and some operations (addcmul) round those otherwise.
    """
    case = MapCase(size=(14, 13), dim=193, state=2, batch=3, dtype=torch.float32, **ROUTES[routes])
    counts = (2, 2) if backend == "torch" else (2, 2, 1)
    if backend not in FULL:
        case, counts = dataclasses.replace(case, size=(4, 6), dim=20), (2, 1)
    threads, results = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(run_map(backend, case.inputs(), case.options))
    finally:
        torch.set_num_threads(threads)
    for name, *tensors in zip(("y", *MAP_NAMES), *results, strict=True):
        assert all(torch.equal(tensor, tensors[0]) for tensor in tensors), name
