"""List what is measured side by side: the backends, and other ways to compute the same functions."""

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmmsv.kernels import BACKENDS, Route, scan2d, selective_scan, use_backend
from mmmsv.kernels.routes import roll_up, unroll

# Those that go from token to token in Python.
BY_TOKEN = ("reference", "token loop")


@dataclass(frozen=True)
class Implementation:
    """One way to compute both ops.

    Args:
        name: As in the tables.
        what: One clause about it.
        why_not: Why it cannot run on the device, in one clause; None where it can.
        scan2d: Takes the arguments of :func:`mmmsv.kernels.scan2d`; autograd goes through it.
        selective_scan: Takes the tensors of :func:`mmmsv.kernels.selective_scan`, all given, B and C with their groups;
            the step goes through a softplus.
        active: The context that both and their backward passes need.
    """

    name: str
    what: str
    why_not: str | None
    scan2d: Callable[..., Tensor]
    selective_scan: Callable[..., Tensor]
    active: Callable[[], AbstractContextManager[None]] = nullcontext


def list_implementations(device: torch.device) -> list[Implementation]:
    """Return all of them, the backend that is taken automatically on ``device`` first."""
    reasons = {name: backend.why_not(device) for name, backend in BACKENDS.items()}
    fastest = next(name for name, reason in reasons.items() if not reason)
    public = (scan2d, partial(_with_softplus, selective_scan))
    notes = {fastest: ", the automatic choice here"}
    backends = (
        (name, f"backend of `mmmsv.kernels`{notes.get(name, '')}", reasons[name], *public, partial(use_backend, name))
        for name in sorted(reasons, key=lambda name: name != fastest)
    )
    no_gpu = None if device.type == "cuda" else "needs a CUDA device"
    token_loop = "a Python loop over the tokens, vectorised over the channels, with autograd"
    mambapy = "the parallel scan of the PyPI package mambapy, in PyTorch"
    mamba_ssm = "`selective_scan_fn` of the package mamba-ssm, in CUDA"
    baselines = (
        ("token loop", token_loop, None, _token_loop),
        ("mambapy", mambapy, _not_installed("mambapy"), _mambapy),
        ("mamba-ssm", mamba_ssm, no_gpu or _not_installed("mamba_ssm"), _mamba_ssm),
    )
    return [
        *(Implementation(*backend) for backend in backends),
        *(Implementation(*about, partial(_along_routes, scan1d), scan1d) for *about, scan1d in baselines),
    ]


def _not_installed(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def _along_routes(
    scan1d: Callable[..., Tensor],
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    W_dt: Tensor,
    b_dt: Tensor,
    A: Tensor,
    Dskip: Tensor,
    routes: Sequence[Route],
    carry: bool,
    merge: bool,
) -> Tensor:
    """Compute ``scan2d``, with a set of weights for each sequence, by a 1-D scan: unroll the map, scan, lay y back."""
    walks = [tuple(routes)] if carry else [(route,) for route in routes]

    def per_sequence(tensor: Tensor) -> Tensor:
        """From ``(batch, H, W, sequences, R)`` to ``(batch, sequences, R, L)``, in the dtype of the state."""
        maps = zip(tensor.to(A.dtype).unbind(3), walks, strict=True)
        return torch.stack([unroll(one, walk) for one, walk in maps], 1).transpose(2, 3)

    u = torch.stack([unroll(x, walk) for walk in walks], 2).to(A.dtype).flatten(2).transpose(1, 2)
    delta = torch.einsum("bqrl,qdr->bqdl", per_sequence(dt), W_dt).flatten(1, 2)
    # The channels of all sequences side by side, those of a sequence a group.
    A, Dskip, b_dt = (weight.flatten(0, 1) for weight in (A, Dskip, b_dt))
    y = scan1d(u, delta, A, per_sequence(B), per_sequence(C), Dskip, b_dt).transpose(1, 2)
    parts = [part for sequence in y.chunk(len(walks), 2) for part in sequence.chunk(len(walks[0]), 1)]
    maps = [roll_up(part, (route,), *x.shape[1:3]) for part, route in zip(parts, routes, strict=True)]
    return (sum(maps[1:], maps[0]) if merge else torch.stack(maps, 1)).to(x.dtype)


def _token_loop(*tensors: Tensor) -> Tensor:
    return _around(_token_after_token, *tensors)


def _mambapy(*tensors: Tensor) -> Tensor:
    from mambapy.pscan import pscan  # may not be installed

    return _around(pscan, *tensors)


def _mamba_ssm(*tensors: Tensor) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # may not be installed

    return _with_softplus(selective_scan_fn, *tensors)


def _with_softplus(scan: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    *others, delta_bias = tensors
    return scan(*others, None, delta_bias, True)


def _around(
    recurrence: Callable[[Tensor, Tensor], Tensor],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """Make decays and drives ``(batch, L, D, N)``, have the states of all tokens computed, and read y out of them."""
    dtype, groups = u.dtype, B.shape[1]
    u, delta, B, C = (tensor.to(A.dtype) for tensor in (u, delta, B, C))
    step = softplus(delta + delta_bias[:, None]).transpose(1, 2)
    B, C = (tensor.permute(0, 3, 1, 2).unsqueeze(3) for tensor in (B, C))  # (batch, L, G, 1, N)
    u = u.transpose(1, 2)
    decay = torch.exp(step.unsqueeze(-1) * A)
    drive = ((step * u).unflatten(2, (groups, -1)).unsqueeze(-1) * B).flatten(2, 3)
    y = (recurrence(decay, drive).unflatten(2, (groups, -1)) * C).sum(-1).flatten(2, 3) + D * u
    return y.transpose(1, 2).to(dtype)


def _token_after_token(decay: Tensor, drive: Tensor) -> Tensor:
    state, states = torch.zeros_like(drive[:, 0]), []
    for one_decay, one_drive in zip(decay.unbind(1), drive.unbind(1), strict=True):
        state = torch.addcmul(one_drive, one_decay, state)
        states.append(state)
    return torch.stack(states, 1)
