"""Count the memory that models keep for their backward pass, on fake tensors: no GPU is needed to count that of one.

    python -m benchmarks.activations                          # 2 x 800 x 1280 in bfloat16, as on a GPU
    python -m benchmarks.activations --device cpu --dtype float32 --batch 8 --size 224 224

What is counted are the tensors that autograd saves, each memory once, without weights: no images, no workspaces, no
fragmentation. What is counted for a GPU is of the ops that run there; no kernel runs.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmmsv.analysis.speed.markdown import table
from mmmsv.analysis.speed.memory import kept_for_backward
from mmmsv.analysis.speed.models import build, full_name, short_name
from mmmsv.kernels import BACKENDS
from mmmsv.models import MSVMamba

_BASELINES = ("swin_t", "convnext_tiny")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.activations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arch", nargs="?", default="tiny", choices=[*MSVMamba.archs], help="of MSVMamba (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1280), metavar=("H", "W"), help="of the image")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="(%(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of autocast (%(default)s)"
    )
    args = parser.parse_args()
    rows = []
    on_a_gpu = {"triton": replace(BACKENDS["triton"], why_not=lambda device: None)}  # no kernel runs
    for name in map(full_name, (args.arch, *_BASELINES)):
        with patch.dict(BACKENDS, on_a_gpu), FakeTensorMode(allow_non_fake_inputs=True), torch.device(args.device):
            model, image = build(name, maps=True).train(), torch.empty(args.batch, 3, *args.size)
            with _autocast(args.device, args.dtype):
                rows.append([short_name(name), f"{kept_for_backward(model, image) / 2**20:.0f}"])
                if name == full_name(args.arch):
                    for block in (block for stage in model.stages for block in stage.blocks):
                        block.with_cp = True
                    rows.append([f"{short_name(name)}, with_cp", f"{kept_for_backward(model, image) / 2**20:.0f}"])
    print(table(("backbone", "kept for the backward pass, MiB"), rows))


@contextmanager
def _autocast(device: str, dtype: str) -> Iterator[None]:
    """Switch autocast on; torch.autocast itself refuses to where there is no GPU, for a tensor that is fake, too."""
    torch.set_autocast_enabled(device, dtype != "float32")
    torch.set_autocast_dtype(device, getattr(torch, dtype))
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, False)


if __name__ == "__main__":
    main()
