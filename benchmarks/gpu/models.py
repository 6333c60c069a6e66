"""How fast models are on this GPU beside others, what memory they need, and where their time goes."""

import contextlib
import os
from collections.abc import Iterator
from itertools import product
from unittest.mock import patch

import torch

from mmmsv.analysis.speed.models import BACKBONES, full_name, short_name
from mmmsv.analysis.speed.timing import FAILURES, explain
from mmmsv.analysis.speed.workload import Step, Variant, Workload

from ..op_profile import profile_ops
from .round import Round

_MODELS = ("tiny", "convnext_tiny", "swin_t")
GRAPHS = "eager, blocks by CUDA graphs"


@contextlib.contextmanager
def asked_for_graphs(asked: bool = True) -> Iterator[None]:
    """Let blocks be captured in CUDA graphs in the ``with`` block, or not."""
    with patch.dict(os.environ, {"MMMSV_CUDA_GRAPHS": str(int(asked))}):
        yield


def check_graphs(round_: Round) -> None:
    """Compare the logits of models whose blocks are captured in CUDA graphs with those of others, bit for bit."""
    with torch.inference_mode(), torch.autocast(round_.device.type, torch.bfloat16):
        for name, batch in (("nano", 1), ("tiny", 1), ("tiny", 128)):
            step = (
                Step(64, 64, 2, False, "bfloat16", maps=False)
                if round_.dry
                else Step(224, 224, batch, False, "bfloat16", maps=False)
            )
            model, same = _workload(round_, full_name("nano" if round_.dry else name), step, "eager").model, True
            for _ in range(1 if round_.dry else 8):
                image = torch.randn(step.batch, 3, step.height, step.width, device=round_.device)
                with asked_for_graphs():
                    ours = model(image)
                with asked_for_graphs(False):
                    same = torch.equal(ours, model(image)) and same
            round_.add("graphs", model=name, step=str(step), **{"same bits as without": same})


def time_models(round_: Round) -> None:
    """Time Tiny and its peers, and measure their memory, as classifiers and as backbones of detectors.

    In bfloat16 by autocast, channels-last, eager before compiled.
    """
    for mode, step, name in product(("eager", GRAPHS, "compiled"), _steps(round_), _names(round_)):
        if round_.dry and mode == "compiled":
            return
        if mode == GRAPHS and (step.training or name.partition(":")[0] not in BACKBONES):
            continue
        if round_.left < (150 if mode == "compiled" else 60):
            return
        row = {"model": short_name(name), "step": f"{step}{', maps' if step.maps else ''}", "mode": mode}
        try:
            with asked_for_graphs(mode == GRAPHS):
                work = _workload(round_, name, step, "eager" if mode == GRAPHS else mode)
                round_.add("models", **row, **_measured(round_, work))
        except FAILURES as error:  # out of memory, or a compiler that gave up
            round_.add("models", **row, failed=explain(error))
        torch.compiler.reset()
        if not round_.dry:
            torch.cuda.empty_cache()


def _steps(round_: Round) -> list[Step]:
    side, batch, detection = (64, 2, (64, 96)) if round_.dry else (224, 128, (800, 1280))
    return [
        Step(side, side, batch, False, "bfloat16", maps=False),
        Step(side, side, batch, True, "bfloat16", maps=False),
        Step(*detection, 2, True, "bfloat16", maps=True),
        *([] if round_.dry else [Step(side, side, 1, False, "bfloat16", maps=False)]),
    ]


def _names(round_: Round) -> tuple[str, ...]:
    return tuple(map(full_name, ("nano", "resnet18") if round_.dry else _MODELS))


def _workload(round_: Round, name: str, step: Step, mode: str) -> Workload:
    return Workload(name, step, Variant("channels_last", mode), round_.device)


def _measured(round_: Round, work: Workload) -> dict[str, object]:
    launched, _ = round_.seconds(work, short=False)
    replayed, how = (launched, "") if work.step.training else round_.seconds(work)
    return {
        "ms": round(1e3 * launched, 2),
        "images/s": round(work.step.batch / launched),
        "by graph, ms": round(1e3 * replayed, 2) if how == "graph" else "",
        "peak memory, GiB": round(work.peak().whole / 2**30, 2),
    }


def profile_models(round_: Round) -> None:
    """List the kernels that take most of inference and of a training step."""
    most = 1 if round_.dry else 2
    for name, step in product(_names(round_)[:most], _steps(round_)[:most]):
        if round_.left < 30:
            return
        work = _workload(round_, name, step, "eager")
        work()
        for op in profile_ops(work, round_.device, 1)[:20]:
            row = {"ms": round(1e3 * op.seconds, 2), "times": op.calls, "kernel": op.name[:100]}
            round_.add("profile", model=short_name(name), step=step.kind, **row)
