"""Measure images/s, latency and peak memory of models, ours beside torchvision's, in turns.

    python tools/throughput.py                                    # MSVMamba-Tiny, ConvNeXt-T, Swin-T, ResNet-50 at 224
    python tools/throughput.py tiny VMamba:v2_tiny_s1l8 --inference --batch 1 64 --dtype bfloat16
    python tools/throughput.py --sizes sweep --backbone-only --out work_dirs/speed

Prints the tables, and writes them to --out with all samples and, of several sizes, a plot. docs/speed.md says what the
columns mean, and what makes figures differ.
"""

import argparse
import re
import sys
import warnings
from itertools import product
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from mmmsv.analysis.speed.groups import BEST, Row, Settings, measure_group
from mmmsv.analysis.speed.machine import why_unreliable
from mmmsv.analysis.speed.models import BASELINES, full_name, why_no_maps
from mmmsv.analysis.speed.progress import progress
from mmmsv.analysis.speed.report import as_markdown, conditions, write
from mmmsv.analysis.speed.workload import DTYPES, LAYOUTS, MODES, Step

# What `--sizes sweep` stands for: (H, W), the last one that of detection.
SWEEP = (*((side, side) for side in (224, 384, 512, 640, 768, 1024)), (800, 1280))
GPU_BATCH = 32


def main() -> None:
    parser = _parser()
    args = parser.parse_args()
    try:
        _check(args)
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if args.threads:
            torch.set_num_threads(args.threads)
        settings = Settings(device, args.layout, args.mode, args.seconds, not args.no_memory)
        facts = conditions(settings, args.dtype)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
        if reason := why_unreliable():
            print(f"throughput.py: {reason}", file=sys.stderr)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: the scan backend cannot run here
        parser.error(str(error))
    names, steps = list(dict.fromkeys(args.models)), _steps(args, device)
    rows: list[Row] = []
    with progress(len(steps)) as bar:
        for step in steps:
            group = measure_group(names, step, settings, lambda text, step=step: bar.show(f"{step}: {text}"))
            rows += group
            bar.advance(step, group)
            if args.out:  # after each group, for a run may be killed
                write(args.out, facts, rows)
    print(as_markdown(facts, rows), end="")
    if not any(row.timing for row in rows):
        sys.exit(1)


def _check(args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here; leave it out, or say --device cpu")
    if args.backbone_only and (reason := next(filter(None, map(why_no_maps, args.models)), None)):
        raise ValueError(f"--backbone-only: {reason}")
    if args.out and args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out}: is a file, expected a folder")
    if "sweep" in args.sizes and len(args.sizes) > 1:
        raise ValueError("--sizes: sweep stands for seven sizes; give it alone, or sizes of your own")


def _steps(args: argparse.Namespace, device: torch.device) -> list[Step]:
    both = args.train == args.inference
    kinds = [training for training in (False, True) if both or training == args.train]
    batches = args.batch or [GPU_BATCH if device.type == "cuda" else 1]
    sizes = SWEEP if args.sizes == ["sweep"] else args.sizes
    return [
        Step(*size, batch, training, args.dtype, args.backbone_only)
        for training, batch, size in product(kinds, dict.fromkeys(batches), dict.fromkeys(sizes))
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models",
        nargs="*",
        type=_model,
        default=[full_name(name) for name in ("tiny", *BASELINES)],
        metavar="MODEL",
        help="archs of MSVMamba such as tiny, of VMamba such as VMamba:v2_tiny_s1l8, deit_small, classifiers of "
        f"torchvision; the others are compared with the first one (tiny {' '.join(BASELINES)})",
    )
    size_help = "sides, or width x height as 1280x800; or sweep, for 224 384 512 640 768 1024 1280x800 (224)"
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(224, 224)], metavar="SIZE", help=size_help)
    batch_help = f"images at a time, one or several numbers (1 on a CPU, {GPU_BATCH} on a GPU)"
    parser.add_argument("--batch", nargs="+", type=_count, metavar="N", help=batch_help)
    parser.add_argument("--inference", action="store_true", help="no training, unless that is asked for, too")
    parser.add_argument("--train", action="store_true", help="no inference, unless that is asked for, too")
    parser.add_argument("--backbone-only", action="store_true", help="maps of all four stages, as a detector uses them")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="other than float32: autocast (%(default)s)")
    layout_help = "of weights and images; best: for each model the faster one (%(default)s)"
    parser.add_argument("--layout", choices=(BEST, *LAYOUTS), default=BEST, help=layout_help)
    mode_help = "compiled: torch.compile, minutes on a CPU; best: the faster one (%(default)s)"
    parser.add_argument("--mode", choices=(*MODES, BEST), default=MODES[0], help=mode_help)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=_count, metavar="N", help="on the CPU; default: what torch takes")
    seconds_help = "no new round of a group begins after this long; there are three at least (%(default)s)"
    parser.add_argument("--seconds", type=_seconds, default=10.0, metavar="S", help=seconds_help)
    parser.add_argument("--no-memory", action="store_true", help="on a CPU it takes a process for each model and size")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for throughput.json, throughput.md and plots")
    return parser


def _model(text: str) -> str:
    try:
        return full_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _size(text: str) -> tuple[int, int] | str:
    """Read a side, or width x height; return (H, W)."""
    if text == "sweep":
        return text
    if not (match := re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; give a side such as 224, or width x height as 1280x800; models come before options"
        )
    width, height = int(match[1]), int(match[2] or match[1])
    return height, width


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, such as 10 or 0.5")
    return float(text)


if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True  # within a group sizes do not change, so what cuDNN tries holds
    # What building a model logs, and warns of, is of no interest.
    MMLogger.get_instance("throughput", log_level="ERROR")
    warnings.filterwarnings("ignore", module="mm")
    main()
