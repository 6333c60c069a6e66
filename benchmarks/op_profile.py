"""Print where the time of a model goes, op by op.

    .venv/bin/python benchmarks/op_profile.py                    # MSVMamba-Tiny, one image of 224 x 224
    .venv/bin/python benchmarks/op_profile.py nano --batch 8 --train

Of another commit: run this file with that commit's checkout, its library built, in PYTHONPATH.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mmmsv.analysis import build_classifier

_WARM, _CALLS, _ROWS = 4, 8, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", nargs="?", default="tiny", help="of MSVMamba (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"), help="of the image")
    parser.add_argument("--train", action="store_true", help="forward and backward in the place of inference")
    args = parser.parse_args()
    try:
        model = build_classifier("MSVMamba", args.arch).train(args.train)
    except ValueError as error:
        parser.error(str(error))
    image = torch.randn(args.batch, 3, *args.size)

    def step() -> None:
        if args.train:
            model.zero_grad()
            model(image).sum().backward()
        else:
            with torch.no_grad():
                model(image)

    for _ in range(_WARM):
        step()
    wall = statistics.median(_seconds(step) for _ in range(_CALLS)) * 1e3
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(_CALLS):
            step()
    ops = [op for op in profiler.key_averages() if op.device_type == DeviceType.CPU]
    ops.sort(key=lambda op: op.self_cpu_time_total, reverse=True)
    total = sum(op.self_cpu_time_total for op in ops) / _CALLS / 1e3
    print("| op | calls | ms | % |\n| --- | --- | --- | --- |")
    for op in ops[:_ROWS]:
        milliseconds = op.self_cpu_time_total / _CALLS / 1e3
        print(f"| {op.key} | {op.count // _CALLS} | {milliseconds:.1f} | {100 * milliseconds / total:.0f} |")
    print(f"\n{wall:.0f} ms a step by the clock (median), {total:.0f} ms in ops while they are profiled.")


def _seconds(step: Callable[[], None]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
