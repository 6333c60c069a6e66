"""Draw multiply-adds, latency, memory and accuracy over the size of the image (Figure 6 of VMamba).

    python tools/scaling.py --no-speed
    python tools/scaling.py --model tiny resnet50 deit_small --sizes 224 384 512 --no-speed \
        --accuracy configs/cls/msvmamba_n_clothing_mini.py epoch_20.pth

Multiply-adds take seconds; latency and memory of seven sizes take minutes, on a machine that does nothing else. The
accuracy is that of the config's test, on its data. scaling is a PNG, an SVG and the arrays.
"""

import argparse
import sys
from pathlib import Path

import torch

from mmmsv.analysis.command_line import figure_parser, run
from mmmsv.analysis.figures.saving import save
from mmmsv.analysis.figures.scaling import draw, point_arrays
from mmmsv.analysis.scaling import SIZES, measure, measure_accuracy
from mmmsv.analysis.speed.groups import BEST, Settings
from mmmsv.analysis.speed.machine import why_unreliable
from mmmsv.analysis.speed.report import conditions

MODELS = ("tiny", "VMamba:v2_tiny_s1l8", "convnext_tiny", "swin_t", "resnet50", "deit_small")


def main() -> None:
    parser = figure_parser(__doc__, "scaling", photographs=False, checkpoints=False, models=MODELS)
    sizes_help = f"sides of the image ({' '.join(map(str, SIZES))})"
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="SIZE", help=sizes_help)
    parser.add_argument("--ours", action="store_true", help="count what this code computes")
    parser.add_argument("--no-speed", action="store_true", help="neither latency nor memory")
    seconds_help = "no new round of a size begins after this long; there are three at least (%(default)s)"
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help=seconds_help)
    accuracy_help = "test a classifier of mmpretrain at each size; may be given several times"
    parser.add_argument(
        "--accuracy", nargs=2, action="append", default=[], metavar=("CONFIG", "CHECKPOINT"), help=accuracy_help
    )
    torch.backends.cudnn.benchmark = True  # within a size shapes do not change, so what cuDNN tries holds
    run(parser, make)


def make(args: argparse.Namespace) -> list[Path]:
    """Measure, draw and save the figure; return its path."""
    settings, facts = None, {}
    what = f"multiply-adds {'that this code makes' if args.ours else 'in the published convention'}"
    if not args.no_speed:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        settings = Settings(device, BEST, "eager", args.seconds, memory=True)
        facts = conditions(settings, "float32")
        what += f"\n{facts.get('GPU', facts['processor'])}, threads: {facts['threads']}, float32"
        if reason := why_unreliable():
            print(f"scaling.py: {reason}", file=sys.stderr)
    # First the accuracy, since what is wrong with a config or a checkpoint shows soon.
    tested = measure_accuracy(args.accuracy, args.sizes, args.out / "tests") if args.accuracy else []
    points = [*measure(args.model, args.sizes, args.ours, settings), *tested]
    for point in points:
        if point.failure:
            print(f"scaling.py: {point.model}, {point.size} x {point.size}: {point.failure}", file=sys.stderr)
    facts = {"conditions": [f"{name}: {value}" for name, value in facts.items()], "ours": args.ours}
    return [save(draw(points, what), {**facts, **point_arrays(points)}, args.out, "scaling")]


if __name__ == "__main__":
    main()
