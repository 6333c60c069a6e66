"""The scan over maps made of one along sequences: unroll the maps along their routes, scan, lay the walks back.

For backends that scan sequences only. Each step copies the maps; the kernels of the backends ``cpu`` and ``triton``
walk over the maps as they are.
"""

import torch
from torch import Tensor

from ...arguments import CHUNK, Scan2d
from ...dispatch import Kernel
from ...routes import ROUTES, roll_up, unroll
from .sequences import Backward, Forward, Sequences


def kernel(forward: Forward, backward: Backward) -> Kernel:
    """Return a kernel for ``scan2d`` that runs a scan along sequences."""

    def scan_maps(scan: Scan2d) -> tuple[Tensor, Tensor]:
        y, _, states = forward(_sequences_of(scan, _unroll(scan, scan.dt)))
        return _roll_up_all(scan, y, scan.merge).to(scan.y_dtype), states if scan.chunk else states.new_empty(0)

    def scan_maps_backward(scan: Scan2d, dy: Tensor, states: Tensor) -> tuple[Tensor, ...]:
        dt = _unroll(scan, scan.dt)
        of = backward(_sequences_of(scan, dt), _unroll_gradient(scan, dy), None, scan.kept_states(states))
        ddt = torch.einsum("blqd,qdr->blqr", of.delta, _each(scan, scan.step_weight))
        dW_dt = torch.einsum("blqd,blqr->qdr", of.delta, dt.to(of.delta.dtype))
        sets = scan.A.shape[0]
        per_token = (_fold_sets(scan, gradient) for gradient in (ddt, of.B, of.C))
        per_set = (one.sum_to_size(sets, *one.shape[1:]) for one in (dW_dt, of.bias, of.A, of.skip))
        return _roll_up_all(scan, of.u, merge=True), *per_token, *per_set

    return Kernel(scan_maps, scan_maps_backward)


def _sequences_of(scan: Scan2d, dt: Tensor) -> Sequences:
    """Put the walks over the maps side by side; ``dt`` are those of the low-rank step, ``(batch, L, K, R)``."""
    # In the state's dtype: the step, as kernels that make it themselves hold it, and u, B and C, which several routes
    # share, so that gradients are sums over them.
    delta = torch.einsum("blqr,qdr->blqd", dt.to(scan.A.dtype), _each(scan, scan.step_weight))
    u, B, C = (_unroll(scan, tensor).to(scan.A.dtype) for tensor in (scan.maps, scan.B, scan.C))
    skip, bias = (None if weight is None else _each(scan, weight) for weight in (scan.Dskip, scan.b_dt))
    tokens = scan.x.shape[1] * scan.x.shape[2]
    chunk = scan.chunk or CHUNK
    starts = [begin + start for begin in range(0, u.shape[1], max(tokens, 1)) for start in range(0, tokens, chunk)]
    return Sequences(u, delta, B, C, _each(scan, scan.A), skip, bias, scan.softplus, chunk, starts)


def _roll_up_all(scan: Scan2d, tokens: Tensor, merge: bool) -> Tensor:
    """Lay ``(batch, L, K, D)`` back onto the map, summed over the routes or one map for each."""
    height, width = scan.x.shape[1:3]
    maps = []
    for routes, sequence in zip(scan.sequences, tokens.unbind(2), strict=True):
        walks = sequence.unflatten(1, (len(routes), height * width)).unbind(1)
        maps += [roll_up(walk, (route,), height, width) for walk, route in zip(walks, routes, strict=True)]
    return (sum(maps[1:], start=maps[0]) if merge else torch.stack(maps, 1)).contiguous()


def _each(scan: Scan2d, weight: Tensor) -> Tensor:
    """Expand a weight ``(S, ...)`` to one for each sequence."""
    return weight.expand(len(scan.sequences), *weight.shape[1:])


def _unroll(scan: Scan2d, tensor: Tensor) -> Tensor:
    """Unroll what each token has for each set, ``(batch, H, W, S, *)``, to ``(batch, L, K, *)``."""
    tensor = tensor.expand(-1, -1, -1, len(scan.sequences), -1)
    return torch.stack([unroll(tensor[..., q, :], routes) for q, routes in enumerate(scan.sequences)], 2)


def _unroll_gradient(scan: Scan2d, dy: Tensor) -> Tensor:
    """Unroll a gradient of y, whose routes are merged or not, to ``(batch, L, K, D)``."""
    if scan.merge:
        return _unroll(scan, dy.unsqueeze(3))
    walks = [unroll(one, (ROUTES[code],)) for one, code in zip(dy.unbind(1), scan.route_codes, strict=True)]
    return torch.cat(walks, 1).unsqueeze(2) if scan.carry else torch.stack(walks, 2)


def _fold_sets(scan: Scan2d, gradient: Tensor) -> Tensor:
    """Lay a gradient ``(batch, L, K, *)`` back onto the map, summed over the sequences of each set."""
    height, width = scan.x.shape[1:3]
    walks = zip(scan.sequences, gradient.unbind(2), strict=True)
    maps = torch.stack([roll_up(walk, routes, height, width) for routes, walk in walks], 3)
    return maps.sum_to_size((*maps.shape[:3], scan.A.shape[0], maps.shape[4]))
