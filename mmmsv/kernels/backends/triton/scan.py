"""The scan by Triton kernels: puts them together, and launches them.

Routes are followed by index arithmetic; no copy of the map is made. The step of each channel is made outside of the
kernels, as a product of matrices in the dtype of the inputs, once for all routes that share it; what it keeps for the
backward pass is its low-rank form.

A program walks a whole sequence, from its first token to its last (backwards in the backward pass). Where that would
leave the GPU idle, each route is cut into spans, a program for each, and two kernels come before: one finds what each
span makes of a state of 0, one carries the states over the spans.

Every sum is taken in a fixed order. Where several routes or programs add to one number, each writes its part, in the
state's dtype, and torch adds the parts up: so all of them run at once without atomics, and only the sum is rounded to
the dtype of the inputs.
"""

from functools import cache

import torch
from torch import Tensor

from ...arguments import Scan2d, SelectiveScan
from ...strides import laid_out_as, last_axis_innermost
from .maps import for_routes
from .problem import Problem
from .step import low_rank_gradients

# Before 3.5, kernels cannot carry tuples through loops.
_OLDEST_TRITON = (3, 5)


def why_no_triton() -> str | None:
    """Say in one clause why there is no Triton that can compile the kernels; None where there is."""
    try:
        import triton
    except ImportError:
        return "Triton is not installed"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST_TRITON:
        return f"its kernels need Triton 3.5 (torch 2.9) or newer, this is {triton.__version__}"
    return None


@cache
def why_not(device: torch.device) -> str | None:
    """Say in one clause why the backend cannot run on a device; None where it can."""
    if reason := why_no_triton():
        return reason
    import triton

    from .scan_forward import scan_forward

    if not isinstance(scan_forward, triton.JITFunction):
        return None  # Triton's interpreter: TRITON_INTERPRET was set when the kernels were imported
    if device.type != "cuda":
        return "its kernels run on NVIDIA GPUs only"
    if torch.version.hip is not None:
        return "its kernels are made for NVIDIA GPUs, and torch is built for AMD's"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    if (capability := torch.cuda.get_device_capability(device)) < (7, 5):
        return f"its kernels need compute capability 7.5, the GPU has {capability[0]}.{capability[1]}"
    return None


def scan2d(scan: Scan2d) -> tuple[Tensor, Tensor]:
    """Compute y and the states before each chunk."""
    y = scan.new_routes(scan.map_dtype(scan.y_dtype, scan.merge))
    states = Problem.of(scan).forward(y.flatten(2, 3))
    return _sum_maps(y, scan.y_dtype) if scan.merge else y, states


def scan2d_backward(scan: Scan2d, dy: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """Compute the gradients of the tensors, in their order."""
    dy = for_routes(dy.unsqueeze(3), len(scan.route_codes)) if scan.merge else last_axis_innermost(dy.flatten(2, 3))
    of = Problem.of(scan).backward(scan.kept_states(states), dy)
    ddt, dW_dt = low_rank_gradients(scan, of.delta)
    dB, dC = _sum_projections(scan, of.BC)
    return _sum_maps(of.u, scan.x.dtype), ddt, dB, dC, dW_dt, *_sum_weights(scan, of.weights)


def selective_scan(given: SelectiveScan) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the last state, and the states before each chunk."""
    grouped = given.by_group()
    y = grouped.u.new_empty(grouped.u.shape)
    last = given.A.new_empty(len(y), given.A.shape[1], *y.shape[2:])
    states = _problem_of(given).forward(y.transpose(1, 2), grouped.h0, last)
    return laid_out_as(given.u, y.flatten(2)), last.flatten(2), states


def selective_scan_backward(
    given: SelectiveScan, dy: Tensor, dlast: Tensor | None, states: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of the tensors, in their order."""
    grouped, problem = given.by_group(), _problem_of(given)
    sizes = grouped.A.shape[:2]
    dy = last_axis_innermost(dy).unflatten(2, sizes).transpose(1, 2)
    dlast = None if dlast is None else dlast.unflatten(2, sizes)
    dh0 = None if grouped.h0 is None else grouped.h0.new_empty(grouped.h0.shape)
    of = problem.backward(given.kept_states(states), dy, dlast, dh0)
    du, ddelta, dz = (
        None if one is None else one[:, :, 0].transpose(1, 2).flatten(2) for one in (of.u, of.delta, of.z)
    )
    dB, dC = (projection[:, 0] for projection in _sum_projections(problem.scan, of.BC))
    dbias, dA, dD = _sum_weights(problem.scan, of.weights)
    dh0 = None if dh0 is None else dh0.flatten(2)
    return du, ddelta, dB, dC, dz, dA.flatten(0, 1), dD.flatten(), dbias.flatten(), dh0


def _problem_of(given: SelectiveScan) -> Problem:
    z = given.by_group().z
    return Problem.of(given.as_maps(), None if z is None else z.unsqueeze(1))


def _sum_projections(scan: Scan2d, parts: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradients of B and C, ``(batch, H, W, S, N)``, over programs, and over routes that share them."""
    shared = scan.A.shape[0] == 1
    summed = parts.sum((1, 2) if shared else 1, keepdim=True)[:, 0].transpose(1, 2).unflatten(1, scan.x.shape[1:3])
    dB, dC = summed.split(scan.A.shape[2], -1)
    return dB, dC


def _sum_weights(scan: Scan2d, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the gradients of bias, A and skip over batch and programs, and over sequences where one set serves all."""
    sums = parts.sum((0, 1))
    if scan.A.shape[0] == 1 < sums.shape[1]:
        sums = sums.sum(1, keepdim=True)
    return sums[0], sums[2:].permute(1, 2, 0), sums[1]


def _sum_maps(maps: Tensor, dtype: torch.dtype) -> Tensor:
    return (maps[:, 0] if maps.shape[1] == 1 else maps.sum(1)).to(dtype)
