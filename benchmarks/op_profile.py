"""Print where the time of a model goes: op by op on a CPU, kernel by kernel on a GPU.

python -m benchmarks.op_profile                    # MSVMamba-Tiny, one image of 224 x 224
python -m benchmarks.op_profile nano --batch 8 --train
python -m benchmarks.op_profile convnext_tiny --device cuda --batch 128 --dtype bfloat16 --layout channels_last
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mmmsv.analysis.speed.markdown import table
from mmmsv.analysis.speed.models import full_name
from mmmsv.analysis.speed.timing import Candidate, take_turns
from mmmsv.analysis.speed.workload import DTYPES, LAYOUTS, Step, Variant, Workload
from mmmsv.kernels import whole_block

_CALLS, _ROWS = 8, 16


class Op(NamedTuple):
    """What a call spends on an op or a kernel, in how many calls of it."""

    name: str
    calls: int
    seconds: float


def profile_ops(call: Callable[[], object], device: torch.device, calls: int) -> list[Op]:
    """Return the ops of a CPU, or the kernels of a GPU, that a call makes, those that take longest first.

    Where a CPU computes blocks in one call, their steps stand in its place.

    Args:
        call: Was made before, so that all it loads and compiles is there.
        device: Where it runs.
        calls: How many are profiled; the figures are those of one.
    """
    cpu = device.type == "cpu"
    activity = ProfilerActivity.CPU if cpu else ProfilerActivity.CUDA
    with profile(activities=[activity]) as profiler, whole_block.recorded_steps() as steps:
        for _ in range(calls):
            call()
        if not cpu:
            torch.cuda.synchronize(device)
    kind, field = (DeviceType.CPU, "self_cpu_time_total") if cpu else (DeviceType.CUDA, "self_device_time_total")
    ops = (event for event in profiler.key_averages() if event.device_type == kind)
    found = [Op(op.key, op.count // calls, getattr(op, field) / calls / 1e6) for op in ops]
    found = [op for op in found if op.name != "mmmsv::blocks"]
    found += [Op(f"block: {step}", 1, seconds / calls) for step, seconds in steps.items()]
    return sorted(found, key=lambda op: op.seconds, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.op_profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", default="tiny", help="one of those of tools/throughput.py (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"), help="of the image")
    parser.add_argument("--train", action="store_true", help="a training step in the place of inference")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="other than float32: autocast (%(default)s)")
    parser.add_argument("--layout", choices=LAYOUTS, default="contiguous", help="(%(default)s)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    try:
        name = full_name(args.model)
    except ValueError as error:
        parser.error(str(error))
    device = torch.device(args.device)
    step = Step(*args.size, args.batch, args.train, args.dtype, maps=False)
    work = Workload(name, step, Variant(args.layout, "eager"), device)
    work()  # what fails, fails here
    timings, _ = take_turns({"step": Candidate(work)}, device, 2.0)
    ops = profile_ops(work, device, _CALLS)
    total = sum(op.seconds for op in ops)
    rows = ((op.name, op.calls, f"{1e3 * op.seconds:.3g}", f"{100 * op.seconds / total:.0f}") for op in ops[:_ROWS])
    print(table(("kernel" if args.device == "cuda" else "op", "calls", "ms", "%"), rows))
    print(f"\n{1e3 * timings['step'].median:.3g} ms a step (median), {1e3 * total:.3g} ms in them while profiled.")


if __name__ == "__main__":
    main()
