"""Rows of the states that are kept while tokens are generated one by one, found by their indices."""

import torch
from torch import Tensor


def rows_of(op: str, name: str, states: Tensor, indices_name: str, indices: Tensor | None, batch: int) -> Tensor:
    """Return the row of ``states`` at each index, or ``states`` without indices; of a negative index, any row.

    Raises:
        TypeError: The indices are no integers.
        ValueError: They have another shape than ``(batch,)``, or there is no such row.
    """
    if indices is None:
        return states
    check_indices(op, indices_name, indices, batch)
    # Elsewhere torch itself refuses it, without waiting for the device.
    if indices.device.type == "cpu" and batch and indices.max() >= len(states):
        raise ValueError(f"{op}: {indices_name} holds {int(indices.max())}, and {name} has {len(states)} rows")
    return states[indices.long().clamp(min=0)]


def check_indices(op: str, name: str, indices: Tensor, batch: int) -> None:
    """Refuse what is no tensor of ``batch`` integers.

    Raises:
        TypeError: It is no tensor of integers.
        ValueError: It has another shape.
    """
    if not isinstance(indices, Tensor) or indices.dtype not in (torch.int32, torch.int64):
        given = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"{op}: {name} is {given}, expected a tensor of int32 or int64")
    if indices.shape != (batch,):
        raise ValueError(f"{op}: {name} has shape {tuple(indices.shape)}, expected (batch,) = ({batch},)")


def write_rows(states: Tensor, rows: Tensor, indices: Tensor | None) -> None:
    """Write back what was changed of :func:`rows_of`; rows at a negative index are left out.

    With indices this waits for a GPU, which has to say how many there are.
    """
    if indices is None:
        states.copy_(rows)
    else:
        valid = indices >= 0
        states[indices[valid].long()] = rows[valid].to(states.dtype)
