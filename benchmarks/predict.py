"""Predict what models take on GPUs, without one, by what they move and compute there: all by one accounting.

    python -m benchmarks.predict                        # Tiny and ConvNeXt-T on an H100
    python -m benchmarks.predict --cards H200 A100 T4 --models tiny swin_t
    python -m benchmarks.predict --dtype float16        # as MMEngine's --amp has it
    python -m benchmarks.predict --parts                # bytes and launches by op
    python -m benchmarks.predict --kernels              # every kernel of ours too, with occupancy and floor
    python -m benchmarks.predict --compiled             # under torch.compile too; needs torch 2.11

Counted: bytes, products, launches, instructions. Modelled, and off by a third or so: times. An op takes as long as its
bytes at 85 % of what a copy reaches, or its products at the card's rate; a kernel of ours as long as its bytes or its
instructions, whichever takes longer, these at the share of the issue slots that as many warps as fit may fill.
A launch takes 1.5 us. Models are channels-last, in autocast, a step of training without the optimizer's. Nobody has
measured cuDNN's depthwise convolutions here: the first time counts their bytes alone, the second a guess, twice as long
forward and three times backward. Compiled blocks are inductor's kernels by their bytes, and ours as they are.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from itertools import product
from math import ceil

import torch

from mmmsv.analysis.speed.markdown import table
from mmmsv.analysis.speed.models import build, full_name, short_name

from .cards import CARDS, Card
from .compiled import compiled_steps
from .launches import Launch
from .traffic import PRODUCTS, Step, count_steps

_LAUNCH = 1.5e-6
_COPY_SHARE = 0.85
_GUESS = (2.0, 3.0)  # times its bytes, of a depthwise convolution forward and backward
_ISSUE_SHARE = 0.75  # of the issue slots, with many warps


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["tiny", "convnext_tiny"], help="(%(default)s)")
    names = [card.name for card in CARDS]
    parser.add_argument("--cards", nargs="+", default=names[:1], choices=names, metavar="CARD", help=", ".join(names))
    parser.add_argument("--batch", type=int, default=128, help="images (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"), help="of the images")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], help="of autocast (bfloat16 where the card has it)")
    parser.add_argument("--compiled", action="store_true", help="compiled models too, as inductor fuses on an H100")
    parser.add_argument("--parts", action="store_true", help="list our ops, and others of PyTorch's, by what they move")
    parser.add_argument("--kernels", action="store_true", help="list our kernels, by what they take")
    args = parser.parse_args()
    try:
        models = {short_name(full_name(name)): full_name(name) for name in args.models}
    except ValueError as error:
        parser.error(str(error))
    image = (args.batch, 3, *args.size)
    rows, parts, kernels = [], [], []
    cards = [card for card in CARDS if card.name in args.cards]
    if args.dtype:
        cards = [replace(card, dtype=getattr(torch, args.dtype)) for card in cards]
    for card, training in product(cards, (False, True)):
        what = "training" if training else "inference"
        first: dict[str, tuple[float, float]] = {}
        for name, whole_name in models.items():
            make = partial(build, whole_name, maps=False)
            gpu = (card.capability, card.multiprocessors, card.dtype)
            steps = count_steps(make, image, training, *gpu)
            modes = {"eager": list(steps)}
            if args.compiled:
                modes["compiled"] = compiled_steps(make, image, training, *gpu)
            for mode, launches in modes.items():
                took = tuple(sum(seconds(step, card, guess) for step in launches) for guess in (False, True))
                ratios = [ours / its for ours, its in zip(first.setdefault(mode, took), took, strict=True)]
                cells = (f"{1e3 * took[0]:.1f}", f"{ratios[0]:.2f}", f"{1e3 * took[1]:.1f}", f"{ratios[1]:.2f}")
                rows.append((card.name, what, mode, name, *_summary(launches), *cells))
            if args.parts:
                parts += _parts(card, what, name, steps)
            if args.kernels:
                kernels += _kernels(card, what, steps)
    ratio = f"{next(iter(models))} / model"
    columns = ("card", "", "", "model", "launches", "GB", "TFLOP")
    print(table((*columns, "predicted ms", ratio, "with guess, ms", ratio), rows))
    if parts:
        print("\n" + table(("card", "", "model", "op", "launches", "GB", "predicted, ms"), parts))
    if kernels:
        columns = ("card", "", "kernel", "launches", "instructions a pair", "registers", "warps an SM")
        print("\n" + table((*columns, "floor, ms", "all slots, ms", "predicted, ms"), kernels))


def seconds(step: Step, card: Card, guess: bool = False) -> float:
    """Return how long an op or a launch may take, convolutions of cuDNN's as they are guessed or by their bytes."""
    by_bytes = step.moved / (_COPY_SHARE * card.bandwidth)
    if guess and step.depthwise:
        by_bytes *= _GUESS[step.name.endswith("backward")]
    if step.launch is None:
        return _LAUNCH + max(by_bytes, step.flops / card.products if not step.depthwise else 0.0)
    return _LAUNCH + max(by_bytes, _by_instructions(step.launch, card))


def resident_warps(launch: Launch, card: Card) -> int:
    """Return how many warps of a kernel a multiprocessor holds at once."""
    registers, _, shared = launch.resources
    a_program = ceil(registers / 8) * 8 * 32 * launch.warps
    programs = min(card.registers // a_program, 32, card.warps // launch.warps)
    if shared:
        programs = min(programs, 100_000 // shared)
    return max(programs, 1) * launch.warps


def _by_instructions(launch: Launch, card: Card) -> float:
    resident = resident_warps(launch, card)
    warps = min(launch.programs * launch.warps / card.multiprocessors, resident)
    # Few warps wait for memory and for one another; the last programs of a grid leave multiprocessors idle.
    share = min(_ISSUE_SHARE, 0.42 * (warps / 4) ** 0.6)
    waves = launch.programs * launch.warps / (card.multiprocessors * resident)
    idle = ceil(waves) / waves if waves > 1 else 1.0
    return launch.instructions / (card.issue * share) * (1 + (idle - 1) / 2)


def _summary(steps: Iterable[Step]) -> tuple[str, ...]:
    steps = list(steps)
    gigabytes, operations = sum(step.moved for step in steps) / 1e9, sum(step.flops for step in steps) / 1e12
    return str(len(steps)), f"{gigabytes:.1f}", f"{operations:.2f}"


def _parts(card: Card, what: str, model: str, steps: Iterable[Step]) -> list[tuple[str, ...]]:
    """Make a row of each op: of ours, with what PyTorch does for it, all products of matrices, or one of PyTorch's."""
    parts: dict[str, list[Step]] = {}
    for step in steps:
        name = "products of matrices" if step.name in PRODUCTS and not step.part else f"`{step.part or step.name}`"
        parts.setdefault(f"{name}{', backward pass' * step.backward}", []).append(step)
    rows = [
        (card.name, what, model, name, *_summary(those)[:2], f"{1e3 * sum(seconds(step, card) for step in those):.2f}")
        for name, those in parts.items()
    ]
    return sorted(rows, key=lambda row: -float(row[-1]))


def _kernels(card: Card, what: str, steps: Iterable[Step]) -> list[tuple[str, ...]]:
    """Make a row of each kind of launch, those that take longest first."""
    kinds: dict[str, list[Step]] = {}
    for step in steps:
        if step.launch:
            kinds.setdefault(f"{step.name}{', backward pass' if step.backward else ''}", []).append(step)
    rows = []
    for name, launches in kinds.items():
        most = max(launches, key=lambda step: step.launch.instructions).launch
        floor, ideal, predicted = (
            1e3 * sum(values)
            for values in (
                (step.moved / card.bandwidth for step in launches),
                (step.launch.instructions / card.issue for step in launches),
                (seconds(step, card) for step in launches),
            )
        )
        count = f"{most.instructions_a_pair}" if most.kernel != "carry_over" else ""
        kept = (str(len(launches)), count, str(most.resources[0]), str(resident_warps(most, card)))
        rows.append((card.name, what, f"`{name}`", *kept, *(f"{time:.2f}" for time in (floor, ideal, predicted))))
    return sorted(rows, key=lambda row: -float(row[-1]))


if __name__ == "__main__":
    main()
