"""The convolution of causal-conv1d in calls, forward and backward, as its releases 1.2 to 1.4 make them."""

import torch
from torch import Tensor

from ..causal_conv1d import Activation, causal_conv1d_update, convolve, refuse_seq_idx


@torch.no_grad()
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """Return y of :func:`mmmsv.kernels.causal_conv1d.causal_conv1d_fn`, and write the final states where asked."""
    refuse_seq_idx("causal_conv1d_fwd", seq_idx)
    y, last = convolve("causal_conv1d_fwd", x, weight, bias, initial_states, _activation(silu_activation))
    if final_states_out is not None:
        final_states_out.copy_(last)
    return y


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of x, weight, bias and initial_states; that of x in ``dx``, where it is given."""
    refuse_seq_idx("causal_conv1d_bwd", seq_idx)
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    bias, initial = [None if each is None else each.detach().requires_grad_() for each in (bias, initial_states)]
    with torch.enable_grad():
        y, last = convolve("causal_conv1d_bwd", x, weight, bias, initial, _activation(silu_activation))
    dlast = torch.zeros_like(last) if dfinal_states is None else dfinal_states
    optional = [each for each in (bias, initial) if each is not None]
    of_x, of_weight, *others = torch.autograd.grad([y, last], [x, weight, *optional], [dout, dlast])
    of_initial = None if initial is None else others.pop()
    of_bias = None if bias is None else others.pop()
    return of_x if dx is None else dx.copy_(of_x), of_weight, of_bias, of_initial if return_dinitial_states else None


def update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """Return y of :func:`mmmsv.kernels.causal_conv1d.causal_conv1d_update`."""
    activation = _activation(silu_activation)
    return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)


def _activation(silu_activation: bool) -> Activation:
    return "silu" if silu_activation else None
