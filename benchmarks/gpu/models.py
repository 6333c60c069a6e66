"""How fast models are on this GPU beside others, what memory they need, and where their time goes."""

from itertools import product

import torch

from mmmsv.analysis.speed.models import full_name, short_name
from mmmsv.analysis.speed.timing import FAILURES, explain
from mmmsv.analysis.speed.workload import MODES, Step, Variant, Workload

from ..op_profile import profile_ops
from .round import Round

_MODELS = ("tiny", "convnext_tiny", "swin_t")


def time_models(round_: Round) -> None:
    """Time Tiny and its peers, and measure their memory, as classifiers and as backbones of detectors.

    In bfloat16 by autocast, channels-last, eager before compiled.
    """
    for mode, step, name in product(MODES[: 1 if round_.dry else 2], _steps(round_), _names(round_)):
        if round_.left < (60 if mode == "eager" else 150):
            return
        row = {"model": short_name(name), "step": f"{step}{', maps' if step.maps else ''}", "mode": mode}
        try:
            round_.add("models", **row, **_measured(round_, _workload(round_, name, step, mode)))
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
