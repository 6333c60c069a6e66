"""Stands in for the compiled module of causal-conv1d.

Its releases make calls of their own, told apart by the number of arguments, which are positional: 1.0; 1.1 and Vim; 1.2
to 1.4; from 1.5 on.
"""

from typing import Any

from torch import Tensor

from mmmsv.kernels.stand_ins import convolution, log

log.log_once("causal_conv1d_cuda", "mmmsv.kernels.causal_conv1d")


def causal_conv1d_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> Tensor | None:
    """Return y; from 1.5 on, write it to ``out``."""
    first = (x, weight, bias)
    match others:
        case (silu,):
            return convolution.forward(*first, None, None, None, silu)
        case (seq_idx, silu):
            return convolution.forward(*first, seq_idx, None, None, silu)
        case (seq_idx, initial_states, final_states_out, silu):
            return convolution.forward(*first, seq_idx, initial_states, final_states_out, silu)
        case (seq_idx, initial_states, out, final_states_out, silu):
            out.copy_(convolution.forward(*first, seq_idx, initial_states, final_states_out, silu))
            return None
    raise _unknown("causal_conv1d_fwd", 3 + len(others), "4, 5, 7 or 8")


def causal_conv1d_bwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, dout: Tensor, *others: Any
) -> tuple[Tensor | None, ...] | None:
    """Return the gradients of x, weight and bias, from 1.2 on also of the initial states; from 1.5 on, write them."""
    first = (x, weight, bias, dout)
    match others:
        case (dx, silu):
            return convolution.backward(*first, None, None, None, dx, False, silu)[:3]
        case (seq_idx, dx, silu):
            return convolution.backward(*first, seq_idx, None, None, dx, False, silu)[:3]
        case (seq_idx, initial_states, dfinal_states, dx, return_dinitial_states, silu):
            given = (seq_idx, initial_states, dfinal_states, dx, return_dinitial_states, silu)
            return convolution.backward(*first, *given)
        case (seq_idx, initial_states, dfinal_states, dx, dweight, dbias, dinitial_states, silu):
            given = (seq_idx, initial_states, dfinal_states, dx, dinitial_states is not None, silu)
            _, *results = convolution.backward(*first, *given)
            for out, result in zip((dweight, dbias, dinitial_states), results, strict=True):
                if out is not None:
                    out.copy_(result)
            return None
    raise _unknown("causal_conv1d_bwd", 4 + len(others), "6, 7, 10 or 12")


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, *others: Any
) -> Tensor | None:
    """Return y; from 1.5 on, write it to ``out``."""
    first = (x, conv_state, weight, bias)
    match others:
        case (silu,):
            return convolution.update(*first, silu, None, None)
        case (silu, cache_seqlens, conv_state_indices):
            return convolution.update(*first, silu, cache_seqlens, conv_state_indices)
        case (out, silu, cache_seqlens, conv_state_indices):
            out.copy_(convolution.update(*first, silu, cache_seqlens, conv_state_indices))
            return None
    raise _unknown("causal_conv1d_update", 4 + len(others), "5, 7 or 8")


def _unknown(name: str, given: int, known: str) -> TypeError:
    return TypeError(f"causal_conv1d_cuda.{name}: {given} arguments are given, and its releases take {known}")
