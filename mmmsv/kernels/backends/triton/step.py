"""The step of each channel, made of its low-rank form by products of matrices, and their gradients."""

import torch
from torch import Tensor

from mmmsv.compat.torch_versions import without_autocast

from ...arguments import Scan2d, ceil_div
from .maps import for_routes

# Products of matrices that keep a GPU busy, and tokens that each sums over at least.
_PRODUCTS_WANTED, _TOKENS_OF_A_SUM = 256, 256


def dense_step(scan: Scan2d) -> Tensor:
    """Make the step of each channel before its bias, ``(batch, H, W, S, D)``."""
    if scan.W_dt is None:
        return scan.dt
    weight = scan.W_dt.to(scan.dt.dtype)
    with without_autocast(scan.x.device):
        if len(weight) == 1:
            return torch.mm(scan.dt.flatten(0, 3), weight[0].t()).view(*scan.dt.shape[:4], weight.shape[1])
        by_set = scan.dt.permute(3, 0, 1, 2, 4)
        step = torch.bmm(by_set.flatten(1, 3), weight.mT)
    return step.unflatten(1, by_set.shape[1:4]).permute(1, 2, 3, 0, 4)


def low_rank_gradients(scan: Scan2d, ddelta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of dt and of W_dt from that of the step, ``(batch, routes or 1, H, W, D)``."""
    W_dt = scan.step_weight
    sets, channels, rank = W_dt.shape
    batch, routes, height, width, _ = ddelta.shape
    dt = for_routes(scan.dt, len(scan.route_codes))
    by_route, dt = ddelta.flatten(2, 3), dt[:, :routes]  # (batch, routes or 1, tokens, D or R)
    with without_autocast(scan.x.device):
        # Weights as the step was made of.
        weight = W_dt.to(scan.dt.dtype).to(ddelta.dtype).expand(batch, sets, channels, rank).flatten(0, 1)
        # Sums over routes are rounded, not what is summed.
        product = _wide_product if routes > sets else torch.bmm
        ddt = product(by_route.flatten(*(1, 2) if sets == 1 else (0, 1)), weight)
        parts = _parts(batch * routes, height * width)
        size = batch * routes * parts, height * width // parts
        left, right = (each.reshape(*size, each.shape[-1]) for each in (by_route, dt))
        dW_dt = _wide_product(left.mT, right.to(ddelta.dtype))
    ddt = ddt.view(batch, routes, height, width, rank).sum_to_size(batch, sets, height, width, rank)
    dW_dt = dW_dt.view(batch, routes, parts, channels, rank).sum((0, 2)).sum_to_size(W_dt.shape)
    return ddt.permute(0, 2, 3, 1, 4), dW_dt


def _parts(products: int, tokens: int) -> int:
    """Return into how many parts of one length long sums over tokens are cut, so that few products keep a GPU busy."""
    wanted = max(min(ceil_div(_PRODUCTS_WANTED, max(products, 1)), tokens // _TOKENS_OF_A_SUM), 1)
    return next(parts for parts in range(wanted, 0, -1) if tokens % parts == 0)


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices; return float32 where they are narrower, since results are summed afterwards."""
    if left.dtype in (torch.float32, torch.float64):
        return torch.bmm(left, right)
    if left.device.type == "cuda":  # there is no out_dtype elsewhere; there is with each torch that has Triton 3.5
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())
