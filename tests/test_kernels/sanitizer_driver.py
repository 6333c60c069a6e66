"""What test_sanitizer.py runs in a process of its own: backend ``cpu`` with one build of its library.

Usage: ``python -m tests.test_kernels.sanitizer_driver LIBRARY JOB``.
"""

import ctypes
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mmmsv.kernels import ROUTES, branch_off, fused, read_twice, use_backend
from mmmsv.kernels.backends.cpu import downsampling as native_downsampling
from mmmsv.kernels.backends.cpu import library as native_library
from mmmsv.kernels.backends.cpu import linear as native_linear
from mmmsv.kernels.backends.cpu import scan_problem

from . import downsampling_inputs as lower
from .block_inputs import by_steps, computed, draw_case, mapped, on_any_processor
from .scan_inputs import TOLERANCE, MapCase, assert_near, run_map, run_with_last_state, scan_inputs

MAPS, SEQUENCES, AROUND, BLOCKS = 160, 60, 60, 30
SIZES = [(1, 1), (1, 7), (7, 1), (5, 3), (9, 8), (33, 5), (0, 3)]
DIMS = [1, 3, 16, 17, 193, 0]


def _every_second(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, tensor), -1)[..., 0]


def _with_gaps(tensor: Tensor) -> Tensor:
    """One element more between the last axis' runs, none after the last one."""
    *outer, size = tensor.shape
    room = tensor.new_empty(max(math.prod(outer) * (size + 1) - 1, 0))
    strides = tensor.new_empty(*outer, size + 1, device="meta").stride()
    return room.as_strided(tensor.shape, strides).copy_(tensor)


def _unaligned(tensor: Tensor) -> Tensor:
    """From the second element of its memory to the very last, so that reading one more is an error."""
    return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)


def _turned(tensor: Tensor) -> Tensor:
    """The axes but the last in reverse order, as of a transposed map."""
    axes = [*reversed(range(tensor.dim() - 1)), tensor.dim() - 1]
    return tensor.permute(axes).contiguous().permute(axes)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [Tensor.contiguous, _every_second, _with_gaps, _unaligned, _turned]


def _laid_out(inputs: dict[str, Tensor], draw: random.Random) -> dict[str, Tensor]:
    layout = draw.choice(LAYOUTS)
    return {name: layout(tensor.detach()) for name, tensor in inputs.items()}


def _compare(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], dtype: torch.dtype, what: object) -> None:
    """Memory that nobody has written to holds NaN here, so this also finds what the sanitizers do not look for."""
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one, other, 2 * TOLERANCE[dtype], str(what))


def run_maps(draw: random.Random) -> None:
    for _ in range(MAPS):
        routes = tuple(draw.choices(ROUTES, k=draw.randint(1, 4)))
        carry, sets = draw.choice([(True, 1), (False, 1), (False, len(routes))])
        case = MapCase(
            size=draw.choice(SIZES),
            dim=draw.choice(DIMS),
            state=draw.randint(1, 5),
            rank=draw.choice([1, 2, 13, 16, 17]),
            batch=draw.choice([0, 1, 1, 2, 3, 9]),
            routes=routes,
            sets=sets,
            carry=carry,
            merge=draw.random() < 0.5,
            dtype=draw.choice(list(TOLERANCE)),
        )
        torch.set_num_threads(draw.randint(1, 2))
        inputs = _laid_out(case.inputs(), draw)
        ours, theirs = (run_map(backend, inputs, case.options) for backend in ("cpu", "torch"))
        _compare(ours, theirs, case.dtype, case)


def run_uneven_blocks() -> None:
    """Of blocks of unequal widths the narrow ones alone could keep what several routes make of a token."""
    torch.set_num_threads(2)
    case = MapCase(
        size=(64, 64), dim=84, state=1, rank=3, batch=1, routes=("row", "col"), sets=1, carry=True, dtype=torch.float32
    )
    inputs = case.inputs()
    ours, theirs = (run_map(backend, inputs, case.options) for backend in ("cpu", "torch"))
    _compare(ours, theirs, case.dtype, case)


def run_sequences(draw: random.Random) -> None:
    for _ in range(SEQUENCES):
        groups, dtype = draw.choice([1, 1, 2, 3]), draw.choice(list(TOLERANCE))
        sizes = {
            "batch": draw.choice([0, 1, 2, 9]),
            "dim": groups * draw.choice(DIMS),
            "length": draw.choice([0, 1, 7, 64, 65, 165]),
            "state": draw.randint(1, 5),
            "groups": groups,
        }
        torch.set_num_threads(draw.randint(1, 2))
        inputs = _laid_out(scan_inputs(**sizes, dtype=dtype, all_of_them=True), draw)
        left_out = [name for name in ("D", "delta_bias", "z", "h0") if draw.random() < 0.5]
        inputs = {name: tensor for name, tensor in inputs.items() if name not in left_out}
        ours, theirs = (run_with_last_state(backend, inputs) for backend in ("cpu", "torch"))
        _compare(ours, theirs, dtype, sizes)


def depthwise_conv_read_twice(x: Tensor, **others: object) -> tuple[Tensor, ...]:
    """What two readers of the result get, and another one of x."""
    x, y = branch_off(lambda x: fused.depthwise_conv(x, **others), x)
    return *read_twice(y), x


def run_around(draw: random.Random) -> None:
    """The ops of fused.py, against those of PyTorch."""
    for _ in range(AROUND):
        height, width = draw.choice(SIZES)
        batch, channels, stride = (
            draw.choice([0, 1, 1, 2, 9]),
            draw.choice([3, 16, 17, 193]),
            draw.choice([1, 2, 2, 3, 7, 64]),
        )
        dtype = draw.choice(list(TOLERANCE))
        wide = torch.promote_types(dtype, torch.float32)
        torch.set_num_threads(draw.randint(1, 2))
        layouts = {dtype: draw.choice(LAYOUTS), wide: draw.choice(LAYOUTS)}

        def made(*shape: int, dtype: torch.dtype = dtype, layouts: dict = layouts) -> Tensor:
            return layouts[dtype](torch.randn(shape, dtype=torch.float64).to(dtype)).requires_grad_()

        size = (batch, height, width, channels)
        half = (batch, draw.choice([1, 3]), -(-height // stride), -(-width // stride), channels)
        weight, bias = (made(channels, dtype=wide) for _ in range(2))
        kernel, activation = draw.choice([3, 7]), draw.choice(fused.ACTIVATIONS)
        norm_first = half[1] > 1 or draw.random() < 0.5
        gates = {"z": made(*size), "weight": made(batch, channels, dtype=wide)}
        calls = [
            ("gate", {"y": made(*size), **draw.choice([gates, {"z": gates["z"]}, {"weight": gates["weight"]}])}, {})
        ]
        if height:  # of an empty map the others want nothing to do, neither here nor in PyTorch
            kernels = {"weight": made(channels, 1, kernel, kernel, dtype=wide), **draw.choice([{"bias": bias}, {}])}
            residual = stride == 1 and draw.random() < 0.5
            calls += [
                (
                    draw.choice(["depthwise_conv", "depthwise_conv_read_twice"]),
                    {"x": made(*size), **kernels},
                    {"stride": stride, "activation": activation, "residual": residual},
                ),
                (
                    "merge_scales",
                    {"full": made(*size), "half": made(*half), "weight": weight, "bias": bias},
                    {"eps": 1e-5, "norm_first": norm_first},
                ),
            ]
        for op, tensors, options in calls:
            results = []
            for backend, cast in (("cpu", lambda t: t), ("torch", lambda t: t.to(torch.float64))):
                with use_backend(backend):
                    function = depthwise_conv_read_twice if op.endswith("read_twice") else getattr(fused, op)
                    y = function(**{name: cast(tensor) for name, tensor in tensors.items()}, **options)
                    ys = y if isinstance(y, tuple) else (y,)
                    ones = [torch.ones_like(each) for each in ys]
                    results.append((*ys, *torch.autograd.grad(ys, list(tensors.values()), ones)))
            for ours, theirs in zip(*results, strict=True):
                scale = max(theirs.abs().max().item(), 1e-2) if theirs.numel() else 1
                assert_near(ours / scale, theirs / scale, 6 * TOLERANCE[dtype], f"{op} {size} {options}")


def run_linear(draw: random.Random) -> None:
    for _ in range(AROUND):
        rows, inputs, outputs = draw.choice([1, 8, 9, 50]), draw.choice([1, 16, 37, 193]), draw.choice([1, 16, 47, 97])
        torch.set_num_threads(draw.randint(1, 2))
        x, weight, bias = (_unaligned(torch.randn(shape)) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
        tensors = x, weight, draw.choice([bias, None])
        exact = torch.nn.functional.linear(*(None if each is None else each.double() for each in tensors))
        _compare((native_linear.product(*tensors),), (exact,), torch.float32, tensors)


def run_blocks(draw: random.Random) -> None:
    """One block or two in a call, in float32, in bfloat16, and in bfloat16 beside weights in float32."""
    tolerances = {torch.float32: 2 * TOLERANCE[torch.float32], torch.bfloat16: 0.05}
    for _ in range(BLOCKS):
        case, count = draw_case(draw), draw.randint(1, 2)
        maps, weights = draw.choice([(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)])
        torch.set_num_threads(draw.randint(1, 2))
        blocks = [mapped(case.block(), lambda weight, dtype=weights: _unaligned(weight.to(dtype)))] * count
        x = exact = _unaligned(case.x().to(maps))
        for block in blocks:
            exact = by_steps(exact.double(), block)
        with on_any_processor(), torch.autocast("cpu", torch.bfloat16, enabled=maps != weights):
            y = computed(x, *blocks)
        assert_near(y, exact, tolerances[maps], str(case))


def run_downsampling(draw: random.Random) -> None:
    for _ in range(BLOCKS):
        kind, dtype = draw.choice([lower.MERGING, lower.CONV]), draw.choice([*lower.TOLERANCE])
        size = draw.randint(1, 3), draw.randint(1, 9), draw.randint(1, 9)
        channels, outputs = draw.randint(1, 40), draw.randint(1, 60)
        torch.set_num_threads(draw.randint(1, 2))
        layer, x = lower.layer(kind, channels, outputs, dtype), _unaligned(lower.map_of(size, channels, dtype))
        if layer.weight.dim() == 4 and draw.random() < 0.5:
            layer = layer._replace(weight=layer.weight.contiguous(memory_format=torch.channels_last))
        with on_any_processor():
            y = native_downsampling.compute(x, layer)
        assert_near(y, lower.by_steps(x, layer), lower.TOLERANCE[dtype], f"{kind} {size} {channels} {outputs}")


def all_is_well() -> None:
    draw = random.Random(0)
    torch.manual_seed(0)
    run_maps(draw)
    run_uneven_blocks()
    run_sequences(draw)
    run_around(draw)
    run_linear(draw)
    run_blocks(draw)
    run_downsampling(draw)


def a_short_tensor() -> None:
    """B has a column fewer than the map; the op itself, behind the checks, believes what it is told."""
    inputs = {name: tensor.detach() for name, tensor in MapCase(size=(5, 3)).inputs().items()}
    inputs["B"] = inputs["B"][:, :, 1:].contiguous()
    with use_backend("cpu"):
        torch.ops.mmmsv.scan2d(*inputs.values(), [0], False, True, True, 64, None)


def a_size_beyond_all_numbers() -> None:
    library = native_library.load(native_library.library_path())
    library.mmmsv_scan_scratch(ctypes.byref(scan_problem.ScanProblem(channels=1, blocks=1, states=1 << 62)))


def a_result_that_nobody_wrote() -> None:
    _compare((torch.empty(9),), (torch.zeros(9),), torch.float32, "empty")


JOBS = {
    job.__name__: job for job in (all_is_well, a_short_tensor, a_size_beyond_all_numbers, a_result_that_nobody_wrote)
}


def main(library: str, job: str) -> None:
    native_library.library_path = lambda: Path(library)
    native_library.library.cache_clear()  # imports above have asked for it already
    JOBS[job]()
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
