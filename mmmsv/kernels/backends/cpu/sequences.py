"""The scan along sequences in C++: the library walks over maps of one row, one for each group of channels."""

import torch
from torch import Tensor

from ...arguments import SelectiveScan, ceil_div
from .library import loaded_library
from .memory import in_huge_pages
from .scan import BACKWARD_CHANNELS, FORWARD_CHANNELS, forward_blocks
from .scan_problem import Described, Placed, check_chunk, describe

# Of a block of channels whose tokens lie side by side in memory: those of a chunk are copied to the cache of a core.
_COPIED_CHANNELS = 128


def forward(given: SelectiveScan) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y, the last state, and the states before each chunk."""
    check_chunk(given.chunk)
    y, last, states = given.new_results()
    most = FORWARD_CHANNELS if given.u.stride(2) == 1 else _COPIED_CHANNELS
    described = _describe(given, forward_blocks(len(y), given.sizes[1], most))
    described.place(y=_placed(given, in_huge_pages(y)))
    problem = described.problem
    problem.kept = states.data_ptr() if given.chunk else None
    h0 = None if given.h0 is None else given.h0.contiguous()
    problem.entering, problem.leaving = _address(h0), last.data_ptr()
    loaded_library().scan.forward(problem, given.A)
    return y, last, states


def backward(given: SelectiveScan, dy: Tensor, dlast: Tensor | None, states: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of the tensors, in their order."""
    described = _describe(given, 2 * ceil_div(given.sizes[1], 2 * BACKWARD_CHANNELS))
    du, ddelta = (in_huge_pages(torch.empty_like(each)) for each in (given.u, given.delta))
    described.place(dy=_placed(given, dy), dx=_placed(given, du), ddelta=_placed(given, ddelta))
    dz = None if given.z is None else in_huge_pages(torch.empty_like(given.z))
    if dz is not None:
        described.place(dz=_placed(given, dz))
    problem = described.problem
    problem.kept = given.kept_states(states).data_ptr()
    dlast = None if dlast is None else dlast.contiguous()
    dh0 = None if given.h0 is None else given.h0.new_empty(given.h0.shape)
    # The walk begins with the last token.
    problem.entering, problem.leaving = _address(dlast), _address(dh0)
    token_parts, weight_parts = described.new_parts(given.A.unflatten(0, given.sizes))
    loaded_library().scan.backward(problem, given.A)

    dB, dC = token_parts.sum(0)[:, 0].chunk(2, 3)
    dA, dbias, dD = weight_parts.sum(0).flatten(0, 1).split((given.A.shape[1], 1, 1), 1)
    return du, ddelta, dB, dC, dz, dA, dD[:, 0], dbias[:, 0], dh0


def _describe(given: SelectiveScan, blocks: int) -> Described:
    """Describe all but the results to the library."""
    groups, size = given.sizes, (1, given.u.shape[1])
    A = given.A.unflatten(0, groups)
    bias, skip = (None if each is None else each.unflatten(0, groups) for each in (given.delta_bias, given.D))
    described = describe(given.u, A, bias, skip, size, ((0,),) * len(A), blocks)
    B, C = (Placed.of_sequences(each.unsqueeze(1)) for each in (given.B, given.C))
    described.place(x=_placed(given, given.u), dt=_placed(given, given.delta), B=B, C=C)
    if given.z is not None:
        described.place(z=_placed(given, given.z))
    described.problem.softplus = given.softplus
    return described


def _placed(given: SelectiveScan, tensor: Tensor) -> Placed:
    """Place ``(batch, L, D)``, a row of a map for each group."""
    return Placed.of_groups(tensor.unflatten(2, given.sizes))


def _address(state: Tensor | None) -> int | None:
    return None if state is None else state.data_ptr()
