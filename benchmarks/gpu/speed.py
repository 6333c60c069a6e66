"""How fast it is on this GPU: ceilings, kernels against their floors, models beside others, and where time goes."""

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from mmmsv.analysis.speed.models import build, full_name, short_name
from mmmsv.kernels import scan2d, use_backend

from .cases import parts, scan_cases
from .round import Round

_MODELS = ("tiny", "convnext_tiny", "swin_t")


def measure_ceilings(round_: Round) -> None:
    """Measure a copy and a product of matrices, and say what machine this is."""
    size = 1 << (20 if round_.dry else 31)
    source = torch.empty(size, dtype=torch.uint8, device=round_.device).random_()
    target = torch.empty_like(source)
    seconds, _ = round_.seconds(partial(target.copy_, source))
    round_.copied = 2 * size / seconds
    side = 256 if round_.dry else 8192
    matrix = torch.randn(side, side, device=round_.device, dtype=torch.bfloat16)
    product_seconds, _ = round_.seconds(partial(torch.matmul, matrix, matrix))
    device, clocks = "CPU", ""
    if not round_.dry:
        device = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,driver_version", "--format=csv,noheader"]
        clocks = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    round_.add(
        "environment",
        **{
            "device": device,
            "clocks": clocks,
            "torch": torch.__version__,
            "copy, TB/s": round(round_.copied / 1e12, 2),
            "bfloat16 product, TFLOP/s": round(2 * side**3 / product_seconds / 1e12),
        },
    )


def time_scans(round_: Round) -> None:
    """Time the scans, forward and backward."""
    for case in scan_cases(round_):
        inputs = case.inputs(round_.device)
        call = partial(scan2d, *inputs, case.routes, case.carry, case.merge)
        # What has to be read and written at least: x and y; backward x, dy and dx.
        _time_both(round_, "scans", str(case), call, inputs, 4 * case.pairs, 6 * case.pairs)


def time_parts(round_: Round) -> None:
    """Time the ops around the scans, ours and PyTorch's own."""
    for part, backend in product(parts(round_), ("triton", "torch")):
        if round_.left < 60:
            return
        name = f"{part.name}, {backend}"
        # As in a model: PyTorch's convolution wants its weights in the dtype of the map.
        with use_backend("torch" if round_.dry else backend), torch.autocast(round_.device.type, torch.bfloat16):
            call = partial(part.call, *part.inputs)
            _time_both(round_, "parts", name, call, part.inputs, part.least_bytes, 2 * part.least_bytes)


def _time_both(
    round_: Round,
    section: str,
    name: str,
    call: Callable[[], Tensor],
    inputs: tuple[Tensor, ...],
    forward_bytes: int,
    backward_bytes: int,
) -> None:
    forward, how = round_.seconds(torch.no_grad()(call))
    host = round_.host_seconds(torch.no_grad()(call))
    y = call()
    gradients = partial(torch.autograd.grad, y, inputs, torch.ones_like(y), retain_graph=True)
    backward, backward_how = round_.seconds(gradients)
    copied = round_.copied
    round_.add(
        section,
        **{
            "case": name,
            "forward, us": round(1e6 * forward),
            "times its floor": round(forward * copied / forward_bytes, 1),
            "backward, us": round(1e6 * backward),
            "times its floor, backward": round(backward * copied / backward_bytes, 1),
            "host, us": round(1e6 * host),
            "how": how if how == backward_how else f"{how}; {backward_how}",
        },
    )


def time_models(round_: Round) -> None:
    """Time Tiny and its peers: inference and training, eager and compiled."""
    for compiled, training in product((False,) if round_.dry else (False, True), (False, True)):
        for name, batch in product(_names(round_), (2,) if round_.dry else (128,) if training else (128, 1)):
            if round_.left < (150 if compiled else 60):
                return
            try:
                _time_model(round_, name, training, compiled, batch)
            except (RuntimeError, ValueError) as error:  # out of memory, or a compiler that gave up
                print(name, "failed:", str(error).splitlines()[0])
            torch.compiler.reset()
            if not round_.dry:
                torch.cuda.empty_cache()


def _names(round_: Round) -> tuple[str, ...]:
    return tuple(map(full_name, ("nano", "resnet18") if round_.dry else _MODELS))


def _time_model(round_: Round, name: str, training: bool, compiled: bool, batch: int) -> None:
    step = _step(round_, name, training, compiled, batch)
    for _ in range(1 if round_.dry else 4):
        step()
    if not round_.dry:
        torch.cuda.reset_peak_memory_stats()
    eager, _ = round_.seconds(step, graph=False)
    peak = 0 if round_.dry else torch.cuda.max_memory_allocated()
    replayed, how = (eager, "") if training else round_.seconds(step)
    round_.add(
        "models",
        **{
            "model": short_name(name),
            "what": "training" if training else "inference",
            "mode": "compiled" if compiled else "eager",
            "batch": batch,
            "ms": round(1e3 * eager, 2),
            "images/s": round(batch / eager),
            "by graph, ms": round(1e3 * replayed, 2) if how == "graph" else "",
            "peak memory, GiB": round(peak / 2**30, 2),
        },
    )


def _step(round_: Round, name: str, training: bool, compiled: bool, batch: int) -> Callable[[], object]:
    """Return a step of inference, or of training with AdamW, in bfloat16 by autocast and channels-last."""
    torch.manual_seed(0)
    model = build(name, maps=False).to(round_.device, memory_format=torch.channels_last).train(training)
    side = 64 if round_.dry else 224
    image = torch.randn(batch, 3, side, side, device=round_.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=round_.device)
    forward = torch.compile(model, dynamic=False) if compiled else model
    autocast = partial(torch.autocast, round_.device.type, torch.bfloat16)

    def infer() -> Tensor:
        with torch.inference_mode(), autocast():
            return forward(image)

    if not training:
        return infer
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=not round_.dry)

    def train() -> None:
        with autocast():
            loss = cross_entropy(forward(image), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def profile_models(round_: Round) -> None:
    """List the kernels that take most of a training step and of inference."""
    for name, training in product(_names(round_)[:2], (False, True)):
        if round_.left < 30:
            return
        step = _step(round_, name, training, False, 2 if round_.dry else 128)
        for _ in range(1 if round_.dry else 3):
            step()
        round_.synchronise()
        activities = [ProfilerActivity.CPU] if round_.dry else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        with profile(activities=activities) as profiler:
            step()
            round_.synchronise()
        for seconds, count, kernel in list(_longest(profiler, round_.dry))[:20]:
            what = f"{short_name(name)}, {'training' if training else 'inference'}"
            round_.add("profile", what=what, ms=round(1e3 * seconds, 2), times=count, kernel=kernel[:100])


def _longest(profiler: profile, dry: bool) -> Iterator[tuple[float, int, str]]:
    key = "self_cpu_time_total" if dry else "self_device_time_total"
    rows = [(getattr(event, key), event.count, event.key) for event in profiler.key_averages()]
    for microseconds, count, kernel in sorted(rows, reverse=True):
        if microseconds > 0:
            yield microseconds / 1e6, count, kernel
