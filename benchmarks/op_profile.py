"""Print where the time of a model goes, op by op.

python -m benchmarks.op_profile                    # MSVMamba-Tiny, one image of 224 x 224
python -m benchmarks.op_profile nano --batch 8 --train
"""

import argparse

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mmmsv.analysis import build_classifier
from mmmsv.analysis.speed.markdown import table
from mmmsv.analysis.speed.timing import Candidate, take_turns

_CALLS, _ROWS = 8, 16


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.op_profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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

    step()  # what fails, fails here
    timings, _ = take_turns({"step": Candidate(step)}, torch.device("cpu"), 2.0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(_CALLS):
            step()
    ops = [op for op in profiler.key_averages() if op.device_type == DeviceType.CPU]
    ops.sort(key=lambda op: op.self_cpu_time_total, reverse=True)
    took = [op.self_cpu_time_total / _CALLS / 1e3 for op in ops]
    rows = (
        (op.key, op.count // _CALLS, f"{one:.1f}", f"{100 * one / sum(took):.0f}")
        for op, one in zip(ops[:_ROWS], took, strict=False)
    )
    print(table(("op", "calls", "ms", "%"), rows))
    wall = 1e3 * timings["step"].median
    print(f"\n{wall:.0f} ms a step by the clock (median), {sum(took):.0f} ms in ops while they are profiled.")


if __name__ == "__main__":
    main()
