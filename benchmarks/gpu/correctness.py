"""Is it right on this GPU: the tests, the sanitizers, and values and gradients at the sizes that are timed."""

import importlib.util
import os
import subprocess
import sys

import torch

from mmmsv.kernels import scan2d, use_backend

from .cases import scan_cases
from .round import Round

_SMALL = """
import torch
from mmmsv.kernels import depthwise_conv, gate, layer_norm, merge_scales, scan2d
def leaf(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, device="cuda", dtype=dtype).requires_grad_()
wide = torch.float32
x, half = leaf(1, 9, 10, 128), leaf(1, 3, 5, 5, 128)
dt, B, C = leaf(1, 9, 10, 1, 8).split([6, 1, 1], -1)
A = -leaf(1, 128, 1, dtype=wide).exp()
weights = leaf(1, 128, 6, dtype=wide), leaf(1, 128, dtype=wide), A, leaf(1, 128, dtype=wide)
y = scan2d(x, dt, B, C, *weights, ("row_rev", "col", "col_rev"), True, True)
y = depthwise_conv(y, leaf(128, 1, 3, 3, dtype=wide), leaf(128, dtype=wide), 1, "gelu", True)
y, _ = merge_scales(y, half, leaf(128, dtype=wide), leaf(128, dtype=wide), 1e-5, True)
y = layer_norm(y, leaf(128, dtype=wide), leaf(128, dtype=wide), 1e-5)
gate(y, leaf(1, 9, 10, 128), leaf(1, 128)).float().sum().backward()
torch.cuda.synchronize()
"""


def run_tests(round_: Round) -> None:
    """Run the tests of the kernels with Triton on the GPU, the golden tensors and mixed precision."""
    if round_.dry:
        where = ["tests/test_kernels/test_triton.py", "tests/test_models/test_golden.py"]
        pick = ["-k", "test_division_by_multiplication or test_features and neurips_gated and authors"]
    else:
        where = ["tests/test_kernels", "tests/test_models/test_golden.py", "tests/test_models/test_amp.py"]
        at_once = ["-n", "12"] if importlib.util.find_spec("xdist") else []
        pick = ["-k", "triton or gpu or golden", "--continue-on-collection-errors", *at_once]
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=40", "-p", "no:cacheprovider", *pick, *where]
    limit = max(30.0, min(260.0, round_.left - 200))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else str(expired.stdout)
        (round_.out / "pytest.txt").write_text(output)
        round_.add("tests", command="pytest", result=f"not done in {limit:.0f} s")
        return
    (round_.out / "pytest.txt").write_text(done.stdout + done.stderr)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print(*failed, sep="\n")
    round_.add("tests", command="pytest", result=done.stdout.strip().splitlines()[-1])


def run_sanitizers(round_: Round) -> None:
    """Run one small forward and backward pass of each op under compute-sanitizer."""
    if round_.dry:
        return
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, sys.executable, "-c", _SMALL]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)
            output = done.stdout + done.stderr
            result = next((line for line in output.splitlines()[::-1] if "SUMMARY" in line), output[-200:])
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            result = type(error).__name__
        round_.add("tests", command=f"compute-sanitizer {tool}", result=result)


def check_scans(round_: Round) -> None:
    """Compare y and all gradients with those of backend ``torch`` in float64, for one image of the timed sizes."""
    for case in scan_cases(round_):
        inputs = [tensor[:1] if i < 4 else tensor for i, tensor in enumerate(case.inputs(round_.device))]
        results = []
        for backend, dtype in (("triton", None), ("torch", torch.float64)):
            if round_.dry and dtype is None:
                backend = "torch"
            leaves = [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in inputs]
            with use_backend(backend):
                y = scan2d(*leaves, case.routes, case.carry, case.merge)
                dy = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype)
                results.append((y, *torch.autograd.grad(y, leaves, dy)))
        errors = ((ours.double() - exact).norm() / exact.norm() for ours, exact in zip(*results, strict=True))
        round_.add("check", case=str(case), **{"largest relative error": f"{max(errors).item():.1e}"})
