"""The 2-D scan made of the 1-D one: unroll the map along each route, scan, lay the walks back.

For backends that have a 1-D scan only. Each step copies the map; :mod:`.native_scan` and :mod:`.triton_scan` do not.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...backend import Backend
from ...routes import roll_up, unroll
from ...scan_arguments import Scan1d, Scan2d

Forward1d = Callable[[Scan1d], tuple[Tensor, Tensor]]
Backward1d = Callable[[Scan1d, Tensor, Tensor], tuple[Tensor, ...]]


def backend(selective_scan: Forward1d, selective_scan_backward: Backward1d) -> Backend:
    """Make a backend that runs anywhere of a 1-D scan and its backward pass."""
    return Backend(
        why_not=lambda device: None,
        selective_scan=selective_scan,
        selective_scan_backward=selective_scan_backward,
        scan2d=partial(_forward, selective_scan),
        scan2d_backward=partial(_backward, selective_scan_backward),
    )


def _forward(scan1d: Forward1d, scan: Scan2d) -> tuple[Tensor, Tensor]:
    y, states = scan1d(_flat(scan, _unroll_all(scan, scan.dt)))
    return _roll_up_all(scan, y, scan.merge).to(scan.x.dtype).contiguous(), states


def _backward(scan1d_backward: Backward1d, scan: Scan2d, dy: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    dt = _unroll_all(scan, scan.dt)
    walks = []
    for q, routes in enumerate(scan.sequences):
        if scan.merge:
            walks.append(unroll(dy, routes))
        else:  # route by route, each from its own map
            k = q * len(routes)
            walks.append(torch.cat([unroll(dy[:, k + i], (route,)) for i, route in enumerate(routes)], 1))
    dy = torch.cat(walks, 2).to(scan.A.dtype).transpose(1, 2)
    du, ddelta, dA, dB, dC, dDskip, db_dt = scan1d_backward(_flat(scan, dt), dy, states)

    ddelta = ddelta.unflatten(1, (len(scan.sequences), -1))  # (batch, sequences, D, L)
    W_dt = scan.W_dt.expand(len(scan.sequences), -1, -1)
    ddt = torch.einsum("bqdl,qdr->bqrl", ddelta, W_dt)
    dW_dt = torch.einsum("bqdl,blqr->qdr", ddelta, dt.to(ddelta.dtype))
    dx = _roll_up_all(scan, du, merge=True)
    ddt, dB, dC = (_fold_sets(scan, tensor) for tensor in (ddt, dB, dC))
    dW_dt, db_dt, dA, dDskip = (
        gradient.reshape(len(scan.sequences), *weight.shape[1:]).sum_to_size(weight.shape)
        for gradient, weight in zip((dW_dt, db_dt, dA, dDskip), (scan.W_dt, scan.b_dt, scan.A, scan.Dskip), strict=True)
    )
    gradients = (dx, ddt, dB, dC, dW_dt, db_dt, dA, dDskip)
    return tuple(
        torch.empty_like(tensor).copy_(gradient) for tensor, gradient in zip(scan.tensors, gradients, strict=True)
    )


def _unroll_all(scan: Scan2d, tensor: Tensor) -> Tensor:
    """Unroll what each token has for each parameter set, ``(batch, H, W, S, R)``, to ``(batch, L, sequences, R)``."""
    tensor = tensor.expand(-1, -1, -1, len(scan.sequences), -1)
    walks = [unroll(tensor[..., q, :], routes) for q, routes in enumerate(scan.sequences)]
    return torch.stack(walks, 2)


def _flat(scan: Scan2d, dt: Tensor) -> Scan1d:
    """Put the sequences behind each other along the channels, each a group with its own weights, B and C."""
    sequences = len(scan.sequences)
    # In the state's dtype, as the kernels that make the step themselves hold it.
    delta = torch.einsum("blqr,qdr->bqdl", dt.to(scan.A.dtype), scan.W_dt.expand(sequences, -1, -1)).flatten(1, 2)
    u = torch.cat([unroll(scan.x, routes) for routes in scan.sequences], 2).to(scan.A.dtype).transpose(1, 2)
    B, C = (_unroll_all(scan, tensor).to(scan.A.dtype).permute(0, 2, 3, 1) for tensor in (scan.B, scan.C))
    A, Dskip, b_dt = (
        weight.expand(sequences, *weight.shape[1:]).flatten(0, 1) for weight in (scan.A, scan.Dskip, scan.b_dt)
    )
    return Scan1d(u, delta, A, B, C, Dskip, b_dt, True)


def _roll_up_all(scan: Scan2d, tokens: Tensor, merge: bool) -> Tensor:
    """Lay ``(batch, sequences * D, L)`` back onto the map, summed over the routes or one map for each."""
    height, width = scan.x.shape[1:3]
    maps = []
    for routes, sequence in zip(scan.sequences, tokens.transpose(1, 2).chunk(len(scan.sequences), 2), strict=True):
        walks = sequence.unflatten(1, (len(routes), height * width)).unbind(1)
        maps += [roll_up(walk, (route,), height, width) for walk, route in zip(walks, routes, strict=True)]
    return sum(maps[1:], start=maps[0]) if merge else torch.stack(maps, 1)


def _fold_sets(scan: Scan2d, gradient: Tensor) -> Tensor:
    """Lay a gradient ``(batch, sequences, R, L)`` back onto the map and sum it over the routes of each set."""
    height, width = scan.x.shape[1:3]
    walks = zip(scan.sequences, gradient.transpose(2, 3).unbind(1), strict=True)
    maps = torch.stack([roll_up(walk, routes, height, width) for routes, walk in walks], 3)
    return maps.sum_to_size((*maps.shape[:3], scan.W_dt.shape[0], maps.shape[4]))
