"""Train and infer at random sizes for a long time, and draw what the process holds: memory, files, threads, objects.

    python -m benchmarks.soak --out DIR                        # 10000 steps and 10000 inferences: about 20 minutes
    python -m benchmarks.soak --steps 200 --out DIR            # does it work?

One process goes through three phases: training steps, inferences, and steps of two models in two threads. Each step
takes an arch, options, a dtype, a batch and an image of random kind and size. What the process holds is read after
each hundredth part of a phase, behind a garbage collection. ``soak.csv`` has the readings, ``soak.png`` the curves; the
line printed for each phase compares its second quarter with its last one.
"""

import argparse
import csv
import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from mmmsv.analysis.speed.machine import processor
from mmmsv.models import MSVMamba, VMamba

_SMALL = {"embed_dims": (16, 32), "depths": (1, 2)}
_KINDS = [(MSVMamba, "nano"), (MSVMamba, "v3_tiny"), (VMamba, "tiny"), (VMamba, "v2_tiny_s1l8")]
_OPTIONS: list[dict[str, bool]] = [{}, {"recompute": True}, {"with_cp": True}]
_READINGS = 100


class Reading(NamedTuple):
    """What a process holds after some steps of a phase; memory in MiB."""

    phase: str
    step: int
    memory: float
    files: int
    threads: int
    objects: int


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000, help="of each phase, the last one a tenth (%(default)s)")
    parser.add_argument("--longest", type=int, default=128, help="longest side of an image, pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of soak.csv and soak.png")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    readings: list[Reading] = []
    for phase, step, steps in (
        ("training", _training(args.seed, args.longest), args.steps),
        ("inference", _inference(args.seed, args.longest), args.steps),
        ("training in two threads", _two_threads(args.seed, args.longest), args.steps // 10),
    ):
        readings += _held(phase, step, steps)
        _report([reading for reading in readings if reading.phase == phase])
        _write(readings, args.out / "soak.csv")
        _draw(readings, args.out / "soak.png")


def _held(phase: str, step: Callable[[], None], steps: int) -> Iterator[Reading]:
    for i in range(1, steps + 1):
        step()
        if i % max(1, steps // _READINGS) == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
            memory = pages * os.sysconf("SC_PAGESIZE") / 2**20
            yield Reading(phase, i, memory, files, threads, len(gc.get_objects()))


def _training(seed: int, longest: int) -> Callable[[], None]:
    chance = random.Random(seed)
    models = [kind({**_SMALL, "base": arch}, **options) for kind, arch in _KINDS for options in _OPTIONS]
    optimizers = [torch.optim.AdamW(model.train().parameters(), lr=1e-4) for model in models]

    def step() -> None:
        i = chance.randrange(len(models))
        with torch.autocast("cpu", torch.bfloat16, enabled=chance.random() < 0.25):
            loss = sum(each.float().square().mean() for each in models[i](_image(chance, longest)))
        loss.backward()
        optimizers[i].step()
        optimizers[i].zero_grad()

    return step


def _inference(seed: int, longest: int) -> Callable[[], None]:
    chance = random.Random(seed)
    models = [kind({**_SMALL, "base": arch}).eval() for kind, arch in _KINDS]

    @torch.inference_mode()
    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=chance.random() < 0.25):
            chance.choice(models)(_image(chance, 2 * longest))

    return step


def _two_threads(seed: int, longest: int) -> Callable[[], None]:
    steps = [_training(seed + i, longest) for i in range(2)]

    def step() -> None:
        threads = [threading.Thread(target=each) for each in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return step


def _image(chance: random.Random, longest: int) -> Tensor:
    batch = chance.randint(1, 3)
    return torch.randn(batch, 3, chance.randint(16, longest), chance.randint(16, longest))


def _report(readings: list[Reading]) -> None:
    quarter = len(readings) // 4
    before, after = readings[quarter : 2 * quarter], readings[-quarter:]
    names = ("memory", "files", "threads", "objects")
    means = {name: [sum(getattr(r, name) for r in part) / len(part) for part in (before, after)] for name in names}
    changes = ", ".join(f"{name} {one:.1f} -> {other:.1f}" for name, (one, other) in means.items())
    print(f"{readings[0].phase}, {readings[-1].step} steps; second quarter -> last: {changes}", flush=True)


def _write(readings: list[Reading], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Reading._fields)
        writer.writerows(readings)


def _draw(readings: list[Reading], path: Path) -> None:
    phases = dict.fromkeys(reading.phase for reading in readings)
    titles = {
        "memory": "resident memory, MiB",
        "files": "open files",
        "threads": "threads",
        "objects": "Python objects",
    }
    figure = Figure(figsize=(4.2 * len(phases), 2.2 * len(titles) + 0.5), dpi=120, layout="constrained")
    axes = figure.subplots(len(titles), len(phases), squeeze=False, sharex="col")
    for column, phase in enumerate(phases):
        of_phase = [reading for reading in readings if reading.phase == phase]
        for row, (name, title) in enumerate(titles.items()):
            axis = axes[row][column]
            held = [getattr(each, name) for each in of_phase]
            axis.plot([each.step for each in of_phase], held, color="#0072B2")
            axis.set_ylim(0, 1.2 * max(held))
            axis.grid(True, alpha=0.3)
            axis.set_title(f"{phase}: {title}", fontsize=9)
            axis.tick_params(labelsize=8)
        axes[-1][column].set_xlabel("step", fontsize=9)
    figure.suptitle(processor(), fontsize=10)
    figure.savefig(path)


if __name__ == "__main__":
    main()
