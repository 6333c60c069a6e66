"""What is measured side by side: the backends, and other ways to compute the same function."""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import torch
from cases import Scan
from torch import Tensor
from torch.nn.functional import softplus

from mmmsv.kernels import BACKENDS, scan2d, selective_scan, use_backend
from mmmsv.kernels.backends.torch import unrolled as unfused
from mmmsv.kernels.dispatch import automatic
from mmmsv.kernels.scan_arguments import Scan1d, Scan2d

_UNFUSED = "triton, unfused"


@dataclass(frozen=True)
class Peer:
    """One way to compute both ops.

    Args:
        name: As in the tables.
        what: One clause about it.
        why_not: Says why it cannot run on a device; None where it can.
        run: Computes y; autograd goes through it.
        active: The context that ``run`` and the backward pass need.
    """

    name: str
    what: str
    why_not: Callable[[torch.device], str | None]
    run: Callable[[Scan], Tensor]
    active: Callable[[], AbstractContextManager[None]] = nullcontext


def peers(device: torch.device) -> list[Peer]:
    """Return all peers, the backend that is taken automatically on ``device`` first."""
    _register_unfused()
    fastest = automatic(device)
    names = sorted(BACKENDS, key=lambda name: name != fastest)
    return [
        *(_backend(name, ", the automatic choice here" if name == fastest else "") for name in names),
        Peer(
            "token loop",
            "a Python loop over the tokens, vectorised over the channels, with autograd",
            lambda _: None,
            partial(_unrolled, _token_loop),
        ),
        Peer(
            "mambapy",
            "the parallel scan of the PyPI package mambapy, in PyTorch",
            lambda _: _not_installed("mambapy"),
            partial(_unrolled, _mambapy),
        ),
        Peer(
            "mamba-ssm",
            "`selective_scan_fn` of the package mamba-ssm, in CUDA",
            lambda device: "needs a CUDA device" if device.type != "cuda" else _not_installed("mamba_ssm"),
            partial(_unrolled, _mamba_ssm),
        ),
    ]


def _backend(name: str, note: str) -> Peer:
    what = f"backend of `mmmsv.kernels`{note}"
    if name == _UNFUSED:
        what = "backend `triton` without its 2-D kernels: unrolls the map, runs the 1-D kernels, lays the walks back"
    return Peer(name, what, BACKENDS[name].why_not, _run, partial(use_backend, name))


def _register_unfused() -> None:
    """Make a backend of triton's 1-D kernels, which shows what the 2-D ones gain."""
    triton = BACKENDS["triton"]
    plain = unfused.backend(triton.selective_scan, triton.selective_scan_backward)
    BACKENDS[_UNFUSED] = replace(plain, why_not=triton.why_not)


def _not_installed(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def _run(scan: Scan) -> Tensor:
    """Call the public functions, with all that they check."""
    if isinstance(scan, Scan2d):
        return scan2d(*scan.tensors, scan.routes, scan.carry, scan.merge)
    return selective_scan(*scan)


def _unrolled(scan1d: Callable[[Scan1d], Tensor], scan: Scan) -> Tensor:
    """Run a 1-D scan; of a map, along its routes: gathered, and laid back, by what backend ``torch`` does it with."""
    if isinstance(scan, Scan1d):
        return scan1d(scan)
    return unfused.backend(lambda flat: (scan1d(flat), flat.A), _no_backward).scan2d(scan)[0]


def _no_backward(*_: object) -> NoReturn:
    raise NotImplementedError("autograd goes through this peer's own operations")


def _around(recurrence: Callable[[Tensor, Tensor], Tensor], scan: Scan1d) -> Tensor:
    """Make decays and drives ``(batch, L, D, N)``, have the states of all tokens computed, and read y out of them."""
    groups = scan.B.shape[1]
    u, delta, B, C = (tensor.to(scan.A.dtype) for tensor in (scan.u, scan.delta, scan.B, scan.C))
    step = delta if scan.delta_bias is None else delta + scan.delta_bias[:, None]
    step = (softplus(step) if scan.delta_softplus else step).transpose(1, 2)
    B, C = (tensor.permute(0, 3, 1, 2).unsqueeze(3) for tensor in (B, C))  # (batch, L, G, 1, N)
    u = u.transpose(1, 2)
    decay = torch.exp(step.unsqueeze(-1) * scan.A)
    drive = ((step * u).unflatten(2, (groups, -1)).unsqueeze(-1) * B).flatten(2, 3)
    y = (recurrence(decay, drive).unflatten(2, (groups, -1)) * C).sum(-1).flatten(2, 3)
    if scan.D is not None:
        y = y + scan.D * u
    return y.transpose(1, 2).to(scan.u.dtype)


def _token_loop(scan: Scan1d) -> Tensor:
    return _around(_token_after_token, scan)


def _token_after_token(decay: Tensor, drive: Tensor) -> Tensor:
    state, states = torch.zeros_like(drive[:, 0]), []
    for one_decay, one_drive in zip(decay.unbind(1), drive.unbind(1), strict=True):
        state = torch.addcmul(one_drive, one_decay, state)
        states.append(state)
    return torch.stack(states, 1)


def _mambapy(scan: Scan1d) -> Tensor:
    from mambapy.pscan import pscan  # may not be installed

    return _around(pscan, scan)


def _mamba_ssm(scan: Scan1d) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # may not be installed

    u, delta, A, B, C, D, delta_bias, delta_softplus = scan
    return selective_scan_fn(u, delta, A, B, C, D, None, delta_bias, delta_softplus)
