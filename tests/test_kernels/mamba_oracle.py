"""What the functions of mamba-ssm's interface compute, written down once more: token by token, differentiable."""

import torch
from torch import nn

from .scan_inputs import scan_inputs


def scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Return y and the last state, from B and C of tokens with groups, or of channels."""
    channels = u.shape[1]

    def at(projection, token):
        if projection.dim() == 2:
            return projection
        groups = projection if projection.dim() == 4 else projection[:, None]
        return groups[..., token].repeat_interleave(channels // groups.shape[1], 1)

    step = delta if delta_bias is None else delta + delta_bias[:, None]
    step = nn.functional.softplus(step) if delta_softplus else step
    state, y = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for token in range(u.shape[2]):
        now = step[:, :, token, None]
        state = (now * A).exp() * state + now * at(B, token) * u[:, :, token, None]
        y.append((state * at(C, token)).sum(2))
    y = torch.stack(y, 2)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * nn.functional.silu(z)), state


def convolution(x, weight, bias=None, before=None):
    """Return the sums of W tokens that end at a token, without an activation."""
    width = weight.shape[1]
    before = x.new_zeros(*x.shape[:2], width - 1) if before is None else before
    tokens = torch.cat((before, x), 2)
    y = torch.stack([(tokens[:, :, t : t + width] * weight).sum(2) for t in range(x.shape[2])], 2)
    return y if bias is None else y + bias[:, None]


def inputs(dtype=torch.float64, **sizes):
    """Random arguments of a scan by name, with a gate."""
    given = scan_inputs(dtype=dtype, **sizes)
    u = given["u"].detach()
    return {**given, "z": u.roll(1, 2).flip(1).contiguous().requires_grad_()}


def doubled(tensors):
    """Copies in float64 that require gradients."""
    return {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
