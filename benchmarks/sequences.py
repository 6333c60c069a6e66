"""Time the scan along sequences beside other ways to compute it, Mamba's mixer with it, and a VSS block as one scan2d.

    pip install mambapy transformers                 # in an environment without OpenMMLab, which transformers 5 breaks
    python -m benchmarks.sequences                   # an hour on two cores
    python -m benchmarks.sequences --loops-forward-only                                      # a few minutes
    python -m benchmarks.sequences --channels 64 --length 128 --maps 7x7x32 --seconds 0.1    # does it all work?

The tables are for reading. What a table compares has to give the same numbers and gradients before it is timed, and
takes turns in one process. Times are medians, with the 10th and the 90th percentile in brackets; what takes longer than
a second is timed once. Most of the hour goes into the backward passes of the token loops of mamba-ssm and
transformers: each token is cut out of a whole array, and its gradient is as large as that array.
"""

import argparse
import contextlib
import copy
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mmmsv.analysis.speed import machine
from mmmsv.analysis.speed.markdown import number, spread, table
from mmmsv.analysis.speed.timing import Candidate, Timing, take_turns
from mmmsv.kernels import selective_scan

from .baselines import list_implementations
from .cases import SequenceCase
from .comparison import BOTH, FORWARD
from .vss_block import Block, ConvertedBlock, FlippedBlock

_CLOSE = 1e-3  # of results and gradients, relative to the largest number
SECTIONS = ("scan", "mixer", "block")


@dataclass(frozen=True)
class Variant:
    """One way to compute what a table compares.

    Args:
        forward: Computes the result.
        inputs: Leaves with gradients.
        dy: Gradient of the result.
        active: The context that the forward and the backward pass need.
        has_backward: Whether the backward pass is timed, too.
    """

    forward: Callable[[], Tensor]
    inputs: Sequence[Tensor]
    dy: Tensor
    active: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    has_backward: bool = True

    def modes(self) -> dict[str, Callable[[], object]]:
        """Return what is timed."""
        forward = {FORWARD: torch.no_grad()(self.forward)}
        return {**forward, BOTH: self.both} if self.has_backward else forward

    def both(self) -> tuple[Tensor, ...]:
        """Return the result and the gradients of all inputs."""
        y = self.forward()
        return (y.detach(), *torch.autograd.grad(y, self.inputs, self.dy))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sequences", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="tables to make (all)")
    parser.add_argument("--batch", type=int, default=1, help="sequences, and maps (%(default)s)")
    parser.add_argument("--channels", type=int, default=1536, help="of the sequences, D (%(default)s)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a sequence, L (%(default)s)")
    parser.add_argument("--state", type=int, default=16, help="numbers in the state of a channel, N (%(default)s)")
    parser.add_argument(
        "--maps",
        nargs="+",
        type=_map_size,
        default=[(56, 56, 96), (14, 14, 384)],
        metavar="HxWxC",
        help="inputs of VSS blocks (56x56x96 14x14x384)",
    )
    parser.add_argument(
        "--loops-forward-only", action="store_true", help="leave out the backward passes that take minutes"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="that the rounds of a table take (%(default)s)")
    args = parser.parse_args()
    device = torch.device("cpu")
    print(table(("", ""), machine.facts(device).items()))
    if reason := machine.why_unreliable():
        print(f"\nNot reliable: {reason}.")
    for package in ("mambapy", "transformers"):
        if reason := missing(package):
            print(f"\nLeft out: {reason}.")
    torch.manual_seed(0)
    case = SequenceCase(args.batch, args.channels, args.length, args.state, channels_last=False)
    if "scan" in args.only:
        variants = scans(case, device, not args.loops_forward_only)
        print(f"\n## The scan, {case}, float32\n\n{compare(variants, device, args.seconds)}", flush=True)
    if "mixer" in args.only and not missing("transformers"):
        variants = mixers(case, not args.loops_forward_only)
        print(
            f"\n## Mamba's mixer of transformers, {case}, float32\n\n{compare(variants, device, args.seconds)}",
            flush=True,
        )
    if "block" in args.only:
        for height, width, channels in args.maps:
            for state in dict.fromkeys((1, args.state)):
                for whole in (True, False):
                    what = "VSS block" if whole else "Its scans alone"
                    print(f"\n## {what}, {args.batch} x {height} x {width} x {channels}, N = {state}, float32\n")
                    variants = blocks(args.batch, height, width, channels, state, whole)
                    print(compare(variants, device, args.seconds), flush=True)


def _map_size(text: str) -> tuple[int, int, int]:
    try:
        height, width, channels = map(int, text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of a map, expected HxWxC, as 56x56x96") from error
    return height, width, channels


def missing(package: str) -> str | None:
    """Say why a package cannot be imported, if so."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def compare(variants: Mapping[str, Variant], device: torch.device, seconds: float) -> str:
    """Check each variant against the first one, then time all in turns; return the table.

    Raises:
        RuntimeError: One computes something else, or fails.
    """
    first = next(iter(variants))
    expected: tuple[Tensor, ...] = ()
    differences = {}
    for name, variant in variants.items():
        with variant.active():
            results = variant.both() if variant.has_backward else (variant.forward().detach(),)
        expected = expected or results
        differences[name] = max(map(_difference, results, expected))
        if not differences[name] <= _CLOSE:
            raise RuntimeError(f"{name} differs by {differences[name]:.1e}, expected {_CLOSE} at most")
    calls = {
        (name, mode): Candidate(call, variant.active)
        for name, variant in variants.items()
        for mode, call in variant.modes().items()
    }
    timings, failed = take_turns(calls, device, seconds, short=True)
    if failed:
        raise RuntimeError("; ".join(f"{name}, {mode}: {reason}" for (name, mode), reason in failed.items()))
    columns = [cell for mode in (FORWARD, BOTH) for cell in (f"{mode}, ms", "time / first")]
    rows = [
        (
            name,
            *_cells(timings[name, FORWARD], timings[first, FORWARD]),
            *(_cells(timings[name, BOTH], timings[first, BOTH]) if variant.has_backward else ("", "")),
            f"{differences[name]:.1e}",
        )
        for name, variant in variants.items()
    ]
    return table(("", *columns, "largest difference"), rows)


def _cells(timing: Timing, first: Timing) -> tuple[str, str]:
    return spread([1e3 * seconds for seconds in timing.samples]), number(timing.median / first.median)


def _difference(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


def scans(case: SequenceCase, device: torch.device, cut_loops_have_backward: bool = True) -> dict[str, Variant]:
    """Return the scan along a sequence: by the backend that is taken here, by others, and by packages.

    The backward passes of the loops that cut each token out of a whole array are left out if so asked.
    """
    inputs = case.inputs(device)
    dy = case.output_gradient(inputs)
    fastest, *others = list_implementations(device)
    variants = {
        one.name: Variant(partial(one.selective_scan, *inputs), inputs, dy, one.active)
        for one in (fastest, *(one for one in others if one.name in ("torch", "mambapy", "token loop")))
        if not one.why_not
    }
    loops = {"token loop, as in mamba-ssm": _reference_loop}
    if not missing("transformers"):
        loops["token loop of transformers"] = _transformers_loop
    for name, loop in loops.items():
        variants[name] = Variant(partial(loop, *inputs), inputs, dy, has_backward=cut_loops_have_backward)
    return variants


def _reference_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """Scan as the reference of mamba-ssm goes about it: (batch, D, L, N) in memory, y token by token; one group."""
    step = softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", step, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", step, B[:, 0], u)
    state, results = torch.zeros_like(drive[:, :, 0]), []
    for token in range(u.shape[2]):
        state = decay[:, :, token] * state + drive[:, :, token]
        results.append(torch.einsum("bdn,bn->bd", state, C[:, 0, :, token]))
    return torch.stack(results, 2) + D[:, None] * u


def _transformers_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    scan = _modeling_mamba().mamba_selective_scan
    return scan(u, delta, A, B[:, 0], C[:, 0], D=D, delta_bias=delta_bias, delta_softplus=True)


def mixers(case: SequenceCase, loop_has_backward: bool = True) -> dict[str, Variant]:
    """Return Mamba's mixer of transformers with ``selective_scan``, and as it is: with a loop, or with mambapy."""
    modeling = _modeling_mamba()
    from transformers import MambaConfig  # may not be installed

    config = MambaConfig(hidden_size=case.channels // 2, state_size=case.state, num_hidden_layers=1)
    mixer = modeling.MambaMixer(config, layer_idx=0)
    x = torch.randn(case.batch, case.length, config.hidden_size, requires_grad=True)
    dy = torch.randn_like(x)

    def variant(mixer: nn.Module, active: Callable[[], contextlib.AbstractContextManager[object]]) -> Variant:
        return Variant(partial(mixer, x), [x, *mixer.parameters()], dy, active)

    def with_our_scan() -> contextlib.AbstractContextManager[object]:
        return mock.patch.object(modeling, "mamba_selective_scan", _scan_for_transformers)

    variants = {
        "with selective_scan": variant(mixer, with_our_scan),
        "as it is": replace(variant(mixer, contextlib.nullcontext), has_backward=loop_has_backward),
    }
    if not missing("mambapy"):
        with_mambapy = copy.deepcopy(mixer)
        with_mambapy.use_mambapy = True
        variants["as it is, use_mambapy=True"] = variant(with_mambapy, contextlib.nullcontext)
    return variants


def _scan_for_transformers(*maps: Tensor, use_mambapy: bool, use_associative_scan: bool, **options: Any) -> Tensor:
    """Call ``selective_scan`` without the options that choose between transformers' own ways."""
    return selective_scan(*maps, **options)


def _modeling_mamba() -> ModuleType:
    # Transformers looks for the package "kernels", and in a checkout finds the link in its root.
    sys.modules.setdefault("kernels", None)  # pyrefly: ignore[no-matching-overload]: None says that there is none
    from transformers.models.mamba import modeling_mamba  # may not be installed

    return modeling_mamba


def blocks(batch: int, height: int, width: int, channels: int, state: int, whole: bool) -> dict[str, Variant]:
    """Return a VSS block as one call of ``scan2d`` and as published, or what of it makes the sum over the routes."""
    rank = math.ceil(channels / 16)
    sizes = (batch, height, width, channels) if whole else (batch, 2 * channels, height, width)
    x, dy = torch.randn(sizes), torch.randn(batch, height, width, channels if whole else 2 * channels)
    variants = {}
    for name, kind in (
        ("one scan2d", ConvertedBlock),
        ("cross_scan, selective_scan, cross_merge", Block),
        ("flips", FlippedBlock),
    ):
        block = kind(channels, rank, state)
        given = (x.clone() if whole else block.laid_out(x).clone()).requires_grad_()
        forward = partial(block if whole else block.scan, given)
        of_scans = (block.x_proj_weight, block.dt_projs_weight, block.dt_projs_bias, block.A_logs, block.Ds)
        variants[name] = Variant(forward, [given, *(block.parameters() if whole else of_scans)], dy)
    return variants


if __name__ == "__main__":
    main()
