"""How fast kernels are on this GPU: ceilings, and kernels against their floors."""

import subprocess
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor

from mmmsv.analysis.speed.clock import host_seconds
from mmmsv.kernels import scan2d, use_backend

from .cases import parts, scan_cases
from .round import Round


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
    host = host_seconds(torch.no_grad()(call), round_.device, *((1, 1) if round_.dry else (50, 5)))
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
