"""The functions of causal-conv1d's interface, in PyTorch: the short convolution before the scan of a Mamba block."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmsv.compat.torch_versions import without_autocast

from .argument_checks import check_bool, check_shape, check_tensors
from .state_rows import check_indices, rows_of, write_rows

Activation: TypeAlias = Literal["silu", "swish"] | None


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: Activation = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Convolve each channel with the ``W`` tokens that end at a token.

    .. math::
        y_t = \phi\Big(b + \sum_{k=0}^{W-1} w_k\, x_{t - W + 1 + k}\Big)

    with :math:`\phi` SiLU or nothing, and ``initial_states`` (0 when omitted) before the first token.

    Args:
        x: ``(batch, D, L)``; float16, bfloat16, float32 or float64.
        weight: ``(D, W)``, in any of these dtypes, whatever that of ``x``.
        bias: ``(D,)``.
        seq_idx: Only None: sequences that lie one behind the other in a row of the batch are not supported.
        initial_states: The ``W - 1`` tokens before the first one, ``(batch, D, W - 1)``.
        return_final_states: Whether to return the last ``W - 1`` tokens, too: the ``initial_states`` of the next call.
        final_states_out: A tensor to write them to, ``(batch, D, W - 1)``.
        activation: ``'silu'``, ``'swish'`` (the same), or None.

    Returns:
        y, shape and dtype of ``x``; sums are in float32 (float64 where ``x`` or ``weight`` is), autocast or not. With
        ``return_final_states`` also the final states, ``final_states_out`` itself where it is given.

    Raises:
        TypeError: An argument is no tensor of real floating-point numbers; a switch is no bool.
        ValueError: Shapes or devices disagree, or the activation is another.
        NotImplementedError: ``seq_idx`` is given.

    Source:
        The short convolution of H3 and Mamba, arXiv 2312.00752, Section 3.4. The arguments are those of causal-conv1d.
    """
    op = "causal_conv1d_fn"
    refuse_seq_idx(op, seq_idx)
    check_bool(op, "return_final_states", return_final_states)
    y, last = convolve(op, x, weight, bias, initial_states, activation)
    if not return_final_states:
        return y
    if final_states_out is None:
        return y, last
    check_tensors(op, {"x": x, "final_states_out": final_states_out})
    check_shape(op, "final_states_out", final_states_out, last.shape, "x", x)
    return y, final_states_out.copy_(last)


def refuse_seq_idx(op: str, seq_idx: None) -> None:
    """Raise NotImplementedError for anything but None."""
    if seq_idx is not None:
        raise NotImplementedError(
            f"{op}: seq_idx is given, and sequences one behind the other in a row are not supported; put each in a row "
            "of the batch"
        )


def convolve(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, activation: Activation
) -> tuple[Tensor, Tensor]:
    """Return both results of :func:`causal_conv1d_fn`, y and the final states, for a function named ``op``."""
    _check(op, x, weight, bias, activation, {"initial_states": initial_states})
    if x.dim() != 3:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, expected (batch, D, L)")
    batch, channels, length = x.shape
    before = weight.shape[1] - 1
    if initial_states is None:
        padded = F.pad(x, (before, 0))
    else:
        check_shape(op, "initial_states", initial_states, (batch, channels, before), "x", x)
        padded = torch.cat((initial_states.to(x.dtype), x), 2)
    return _convolved(padded, weight, bias, activation), padded[:, :, length:].clone()


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolve the next tokens, and add them to the tokens that are kept for those after them.

    The equation is that of :func:`causal_conv1d_fn`. This is for generation, token by token: nothing has gradients.

    Args:
        x: One token, ``(batch, D)``, or several, ``(batch, D, L)``.
        conv_state: The last ``S >= W - 1`` tokens, ``(batch, D, S)``, changed in place.
        weight: ``(D, W)``.
        bias: ``(D,)``.
        activation: ``'silu'``, ``'swish'`` (the same), or None.
        cache_seqlens: Number of tokens before these, ``(batch,)``, integers. Then ``conv_state`` is a ring: token ``t``
            is at ``t % S``. When omitted, the tokens are moved along, and the newest one is the last.
        conv_state_indices: Row of ``conv_state`` for each row of x, ``(batch,)``, integers: ``conv_state`` may have any
            number of rows then. A row at a negative index is padding, whose result is 0.

    Returns:
        y, shape and dtype of ``x``.

    Raises:
        TypeError: An argument is no tensor of real floating-point numbers (of integers, for the last two).
        ValueError: Shapes or devices disagree, or the activation is another.
    """
    op = "causal_conv1d_update"
    _check(op, x, weight, bias, activation, {"conv_state": conv_state})
    if x.dim() not in (2, 3):
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, expected (batch, D) or (batch, D, L)")
    tokens = x.unsqueeze(2) if x.dim() == 2 else x
    state = rows_of(op, "conv_state", conv_state, "conv_state_indices", conv_state_indices, len(x))
    before, size = weight.shape[1] - 1, conv_state.shape[-1]
    if conv_state.dim() != 3 or state.shape[:2] != x.shape[:2] or size < before:
        expected = f"(batch, D, S >= W - 1) = ({len(x)}, {x.shape[1]}, S >= {before})"
        raise ValueError(f"{op}: conv_state has shape {tuple(conv_state.shape)}, expected {expected}")
    tokens = tokens.to(state.dtype)
    length = tokens.shape[2]
    if cache_seqlens is None:
        seen = torch.cat((state, tokens), 2)
        padded, state = seen[:, :, size - before :], seen[:, :, length:]
    else:
        check_indices(op, "cache_seqlens", cache_seqlens, len(x))
        places = torch.arange(-before, length, device=x.device) + cache_seqlens.long().unsqueeze(1)
        places = (places % max(size, 1)).unsqueeze(1).expand(-1, x.shape[1], -1)
        padded = torch.cat((state.gather(2, places[:, :, :before]), tokens), 2)
        newest = min(length, size)  # places that are written once each
        state = state.scatter(2, places[:, :, before + length - newest :], tokens[:, :, length - newest :])
    write_rows(conv_state, state, conv_state_indices)
    y = _convolved(padded, weight, bias, activation).to(x.dtype)
    if conv_state_indices is not None:
        y = torch.where(conv_state_indices.view(-1, 1, 1) < 0, 0, y)
    return y.squeeze(2) if x.dim() == 2 else y


def _convolved(padded: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    channels, width = weight.shape
    if padded.shape[2] < width:  # no token
        return padded[:, :, width - 1 :]
    dtype = torch.float64 if torch.float64 in (padded.dtype, weight.dtype) else torch.float32
    with without_autocast(padded.device):
        bias = None if bias is None else bias.to(dtype)
        y = F.conv1d(padded.to(dtype), weight.to(dtype).unsqueeze(1), bias, groups=channels)
    return (y if activation is None else F.silu(y)).to(padded.dtype)


def _check(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    others: dict[str, Tensor | None],
) -> None:
    optional = {"bias": bias, **others}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    check_tensors(op, {"x": x, "weight": weight, **given})
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"{op}: activation is {activation!r}, expected 'silu', 'swish' or None")
    channels = x.shape[1] if x.dim() > 1 else None
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] == 0:
        expected = f"(D, W) = ({channels}, W >= 1) for x {tuple(x.shape)}"
        raise ValueError(f"{op}: weight has shape {tuple(weight.shape)}, expected {expected}")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"{op}: bias has shape {tuple(bias.shape)}, expected (D,) = ({channels},)")
