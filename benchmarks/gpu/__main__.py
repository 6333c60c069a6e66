"""Go through one round on a GPU, most decisive first, within a budget of seconds.

    python -m benchmarks.gpu --out DIR                              # all sections, in about two budgets
    python -m benchmarks.gpu --out DIR --only tests sanitizers      # in a second call, what the first had no time for
    python -m benchmarks.gpu --out DIR --dry                        # on a CPU, tiny: does the script itself work?

Needs torch, Triton and pytest; models and their tests torchvision, and MMEngine with what it imports; no mmcv, no
mmdet. Each row is written as soon as it is there, to DIR/<section>.json and DIR/README.md, so that a round that is cut
off leaves what it had.
"""

import argparse
import time
import traceback
from importlib import import_module
from pathlib import Path

import torch

from mmmsv.analysis.speed.clock import stream_of_its_own
from mmmsv.analysis.speed.timing import FAILURES

from .round import Round
from .speed import measure_ceilings

# The function of each, imported when its turn comes: one that needs what is not installed fails alone.
SECTIONS = {
    "check": "correctness.check_scans",
    "graphs": "models.check_graphs",
    "models": "models.time_models",
    "scans": "speed.time_scans",
    "profile": "models.profile_models",
    "parts": "speed.time_parts",
    "tests": "correctness.run_tests",
    "sanitizers": "correctness.run_sanitizers",
}


def main() -> None:
    """Run the sections that were asked for, after the ceilings."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS], help="sections (all)")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="on a CPU, in tiny sizes")
    arguments = parser.parse_args()
    if not arguments.dry and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --dry goes through the round on a CPU")
    torch.backends.cudnn.benchmark = True
    round_ = Round(arguments.out, arguments.budget, arguments.dry)
    with stream_of_its_own(round_.device):
        measure_ceilings(round_)
        for name in arguments.only:
            if round_.left < 30:
                print("no time left for", name)
                continue
            begin = time.monotonic()
            try:
                module, function = SECTIONS[name].split(".")
                getattr(import_module(f"{__package__}.{module}"), function)(round_)
            except FAILURES:  # the next section may still tell something
                traceback.print_exc()
                (round_.out / "errors.txt").open("a").write(traceback.format_exc())
            print(f"-- {name}: {time.monotonic() - begin:.0f} s, {round_.left:.0f} s left", flush=True)


if __name__ == "__main__":
    main()
