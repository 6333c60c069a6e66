"""The scan over maps in C++: hands tensors to the library by their addresses."""

import torch
from torch import Tensor

from ...arguments import Scan2d, ceil_div
from .library import loaded_library
from .memory import in_huge_pages
from .scan_problem import Described, Placed, check_chunk, describe, padded

# Channels of a block in a backward pass. Sums over channels are made block by block, so this must not depend on the
# number of threads either; blocks come in pairs, so that two cores share an image evenly.
BACKWARD_CHANNELS = 64
FORWARD_CHANNELS = 512


def forward(scan: Scan2d) -> tuple[Tensor, Tensor]:
    """Compute y and the states before each chunk."""
    check_chunk(scan.chunk)
    y_dtype, scan = scan.y_dtype, scan.in_one_dtype()
    dtype = scan.map_dtype(scan.x.dtype, scan.merge)
    y = in_huge_pages(scan.new_merged(dtype) if scan.merge else scan.new_routes(dtype))
    states = scan.A.new_empty(scan.states_shape if scan.chunk else 0)
    described = _describe(scan, forward_blocks(scan.x.shape[0], scan.x.shape[-1], FORWARD_CHANNELS))
    described.place(y=Placed.of_routes(y))
    problem = described.problem
    problem.wide = dtype != scan.x.dtype
    problem.kept = states.data_ptr() if scan.chunk else None
    loaded_library().scan.forward(problem, scan.A)
    return y.to(y_dtype), states


def backward(scan: Scan2d, dy: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """Compute the gradients of the tensors, in their order."""
    scan = scan.in_one_dtype()
    _, channels, state = scan.A.shape
    described = _describe(scan, 2 * ceil_div(channels, 2 * BACKWARD_CHANNELS))
    problem, rank = described.problem, described.problem.rank
    dx = in_huge_pages(scan.x.new_empty(scan.x.shape, dtype=scan.map_dtype(scan.x.dtype, True)))
    described.place(dy=Placed.of_routes(dy.to(scan.x.dtype)), dx=Placed.of_sequences(dx.unsqueeze(3)))
    problem.wide = dx.dtype != scan.x.dtype
    problem.kept = scan.kept_states(states).data_ptr()
    rows = padded(padded(scan.step_weight, 2), 1)
    problem.W_dt_rows, problem.padded_rank = rows.data_ptr(), rows.shape[2]
    token_parts, weight_parts = described.new_parts(scan.A)
    loaded_library().scan.backward(problem, scan.A)

    ddt, dB, dC = token_parts.sum(0).split((rank, state, state), 4)
    dW_dt, dA, db_dt, dDskip = weight_parts.sum(0).split((rank, state, 1, 1), 2)
    return dx, ddt, dB, dC, dW_dt, db_dt[..., 0], dA, dDskip[..., 0]


def forward_blocks(batch: int, channels: int, most_channels: int) -> int:
    """Return into how many blocks a forward pass cuts the channels of a sequence.

    Enough for two tasks a thread; each channel is computed alone, so the number changes no bit of the results.
    """
    return max(ceil_div(2 * torch.get_num_threads(), max(batch, 1)), ceil_div(channels, most_channels))


def _describe(scan: Scan2d, blocks: int) -> Described:
    """Describe all but the results to the library."""
    codes = tuple(scan.route_codes)
    sequences = (codes,) if scan.carry else tuple((code,) for code in codes)
    size = scan.x.shape[1], scan.x.shape[2]
    described = describe(scan.x, scan.A, scan.b_dt, scan.Dskip, size, sequences, blocks)
    x, dt, B, C = (Placed.of_sequences(each) for each in (scan.x.unsqueeze(3), scan.dt, scan.B, scan.C))
    described.place(x=x, dt=dt, B=B, C=C)
    W_dt = padded(scan.step_weight.transpose(1, 2), 2)
    described.tensors.append(W_dt)
    problem = described.problem
    problem.W_dt, problem.rank = W_dt.data_ptr(), W_dt.shape[1]
    problem.one_map, problem.merge, problem.softplus = True, scan.merge, scan.softplus
    return described
