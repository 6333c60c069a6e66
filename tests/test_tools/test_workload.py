"""Each model runs as it is asked to, in its faster variant, and its memory is measured; no time is judged."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmmsv.analysis.flops import parameters
from mmmsv.analysis.speed import groups, memory, models, workload
from mmmsv.analysis.speed.groups import Row, Settings, measure_group
from mmmsv.analysis.speed.memory import measure_in, rise
from mmmsv.analysis.speed.timing import Candidate, Timing, take_turns
from mmmsv.analysis.speed.workload import Step, Variant, Workload

CPU = torch.device("cpu")
EAGER = Variant("contiguous", "eager")
TRAINING = Step(64, 64, 1, True, "float32", False)
INFERENCE = replace(TRAINING, training=False)
OURS, BASELINE = "MSVMamba:nano", "torchvision:resnet18"
needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


def trials(seconds, monkeypatch, **settings):
    """The row of a model whose variants take the given seconds, or fail with the given reason; nothing runs."""

    def stub(candidates, *_, **__):
        took = {key: seconds[key] for key in candidates}
        reasons = {key: its for key, its in took.items() if isinstance(its, str)}
        return {key: Timing(((its,),) * 3) for key, its in took.items() if key not in reasons}, reasons

    class FakeWorkload:
        parameters = 10**6

    monkeypatch.setattr(groups, "take_turns", stub)
    monkeypatch.setattr(groups, "Workload", lambda *_: FakeWorkload())
    row = Row(OURS, INFERENCE)
    groups._in_its_fastest_variant(row, Settings(CPU, seconds=0.0, memory=False, **settings), print)
    return row


FIRST, SECOND = (Variant(layout, "eager") for layout in workload.LAYOUTS)
TRIALS = {
    "first": ({FIRST: 1.0, SECOND: 2.0}, FIRST),
    "second": ({FIRST: 2.0, SECOND: 1.0}, SECOND),
    "first failed": ({FIRST: "out of memory", SECOND: 1.0}, SECOND),
    "both failed": ({FIRST: "out of memory", SECOND: "no compiler"}, None),
}


@pytest.mark.parametrize(("seconds", "fastest"), TRIALS.values(), ids=TRIALS)
def test_each_model_takes_its_faster_layout(seconds, fastest, monkeypatch):
    row = trials(seconds, monkeypatch, layout="best", mode="eager")
    assert (row.variant, row.trials) == (fastest, seconds)
    assert row.reason == (None if fastest else "out of memory")


BOTH_MODES = {
    Variant("channels_last", "eager"): 3.0,
    Variant("contiguous", "eager"): 4.0,
    Variant("channels_last", "compiled"): 2.0,
    Variant("contiguous", "compiled"): 1.5,
}
NOT_COMPILED = {variant: "no compiler" for variant in BOTH_MODES if variant.mode == "compiled"}


@pytest.mark.parametrize(
    ("broken", "gain"),
    [({}, (2.0,) * 3), ({Variant("contiguous", "compiled"): "no compiler"}, (1.5,) * 3), (NOT_COMPILED, ())],
    ids=["all run", "one fails", "none compiles"],
)
def test_gain_of_compiling(broken, gain, monkeypatch):
    """Each mode counts in its faster layout; what did not run in both modes has no gain."""
    row = trials({**BOTH_MODES, **broken}, monkeypatch, layout="best", mode="best")
    assert row.gain_of_compiling == gain


def test_variants():
    settings = Settings(CPU, "best", "best", 1.0, True)
    assert len(set(settings.variants)) == 4
    assert replace(settings, layout="contiguous", mode="compiled").variants == [Variant("contiguous", "compiled")]


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("name", [OURS, BASELINE])
def test_a_training_step_trains(name, maps):
    work = Workload(name, replace(TRAINING, maps=maps), EAGER, CPU)
    before = {key: parameter.detach().clone() for key, parameter in work.model.named_parameters()}
    take_turns({name: Candidate(work)}, CPU, 0, 1)
    after = dict(work.model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in after.values())
    same = [key for key in before if torch.equal(before[key], after[key])]
    assert same == []
    assert work.model.training
    assert all(parameter.grad is None for parameter in after.values())
    assert work.parameters == parameters(work.model)


def test_inference_leaves_the_model_alone():
    work = Workload(BASELINE, INFERENCE, EAGER, CPU)
    seen = []
    work.model.register_forward_hook(lambda module, inputs, output: seen.append((module.training, output)))
    before = {key: value.clone() for key, value in work.model.state_dict().items()}
    work()
    assert all(torch.equal(value, before[key]) for key, value in work.model.state_dict().items())
    ((training, logits),) = seen
    assert not training
    assert logits.shape == (1, 1000)
    assert logits.is_inference()


@pytest.mark.parametrize("dtype", workload.DTYPES)
def test_dtype_is_that_of_autocast(dtype):
    work = Workload(BASELINE, replace(INFERENCE, dtype=dtype), EAGER, CPU)
    seen = []
    work.model.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    work()
    assert seen == [(torch.float32, getattr(torch, dtype))]
    assert {parameter.dtype for parameter in work.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("layout", workload.LAYOUTS)
def test_layout_is_that_of_weights_and_images(layout):
    work = Workload(BASELINE, replace(INFERENCE, batch=2), Variant(layout, "eager"), CPU)
    for tensor in (work.image, work.model.layer1[0].conv1.weight):
        assert tensor.is_contiguous(memory_format=workload.LAYOUTS[layout])


def test_memory_is_released_where_a_step_fails():
    work = Workload(BASELINE, TRAINING, EAGER, CPU)

    class FailsError(RuntimeError):
        pass

    def fail(*_):
        raise FailsError

    work.optimizer.register_step_pre_hook(fail)
    with pytest.raises(FailsError):
        work()
    assert all(parameter.grad is None for parameter in work.model.parameters())


def test_mode_compiled_compiles(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled.append(model) or model)
    work = Workload(BASELINE, INFERENCE, Variant("contiguous", "compiled"), CPU)
    assert compiled == [work.model]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("MSVMamba:nano", (48, 96, 192, 384)),
        ("torchvision:resnet18", (64, 128, 256, 512)),
        ("torchvision:swin_t", (96, 192, 384, 768)),
        ("torchvision:convnext_tiny", (96, 192, 384, 768)),
    ],
)
def test_maps_of_four_stages(name, channels):
    with torch.no_grad():
        maps = models.build(name, maps=True).eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(one.shape) for one in maps] == [(1, c, 16 >> i, 24 >> i) for i, c in enumerate(channels)]
    assert all(one.is_contiguous() for one in maps)


@pytest.mark.parametrize("arch", ["resnet18", "swin_t"])
def test_the_maps_are_those_of_the_whole_baseline(arch):
    """All of the baseline runs but for its head: the last map is what goes into it."""
    torch.manual_seed(0)
    whole = models.build(f"torchvision:{arch}", maps=False).eval()
    inputs = []
    head = whole.avgpool if arch == "resnet18" else whole.norm
    head.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    torch.manual_seed(0)
    backbone = models.build(f"torchvision:{arch}", maps=True).eval()
    with torch.no_grad():
        image = torch.randn(1, 3, 64, 64)
        whole(image)
        last = backbone(image)[-1]
    assert torch.equal(last, inputs[0] if arch == "resnet18" else inputs[0].permute(0, 3, 1, 2))


def test_names():
    assert models.full_name("tiny") == "MSVMamba:tiny"
    assert models.full_name("VMamba:tiny") == "VMamba:tiny"
    assert models.full_name("resnet50") == models.full_name("torchvision:resnet50") == "torchvision:resnet50"
    assert [models.short_name(models.full_name(name)) for name in ("v3_tiny", "swin_t", "deit_small")] == [
        "MSVMamba v3_tiny",
        "swin_t",
        "deit_small",
    ]
    assert all(models.why_no_maps(models.full_name(name)) is None for name in ("tiny", *models.BASELINES))


@pytest.mark.parametrize(("name", "tokens"), [("torchvision:vit_b_32", 4), ("mmpretrain:deit_small", 16)])
def test_vision_transformers_are_made_for_the_size(name, tokens):
    assert models.depends_on_size(name)
    embedding = next(
        v
        for n, v in models.build(name, False, (64, 64)).named_parameters()
        if n.endswith(("pos_embed", "pos_embedding"))
    )
    assert embedding.shape[1] == tokens + 1


@pytest.mark.parametrize(
    ("arch", "size", "reason"), [("vit_h_14", (64, 64), "indivisible by patch"), ("vit_b_16", (64, 96), "not square")]
)
def test_sizes_that_a_vision_transformer_cannot_be_made_for(arch, size, reason):
    with pytest.raises(ValueError, match=f"{arch} cannot be made for images of {size[0]} x {size[1]} .*{reason}"):
        models.build(f"torchvision:{arch}", False, size)


@needs_proc
def test_memory_grows_with_the_batch():
    """In this process, which has used memory before: a batch of 16 is far beyond what that hides."""
    peaks = []
    for batch in (1, 16):
        work = Workload(BASELINE, replace(TRAINING, batch=batch), EAGER, CPU)
        work()
        peaks.append(work.peak())
    weights = 4 * parameters(work.model)
    small, large = peaks
    assert small.whole < large.whole
    # Gradients and the two states of AdamW.
    assert small.beyond_weights > 3 * weights
    for peak in peaks:
        buffers = peak.whole - peak.beyond_weights - weights
        assert 0 < buffers < 0.01 * weights


@needs_proc
def test_the_rise_of_memory_is_that_of_the_call():
    numbers = 16 * 2**20
    before = torch.ones(numbers)  # is not counted
    assert rise(lambda: before + 1, CPU) == pytest.approx(4 * numbers, rel=0.1)


def test_the_rise_of_memory_on_a_gpu_is_that_of_torch(monkeypatch):
    state = {"now": 7, "peak": 100}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: state.update(peak=state["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: state["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: state["peak"])
    assert rise(lambda: state.update(peak=30, now=9), torch.device("cuda")) == 23


CANNOT_MEASURE = {
    "no /proc": (FileNotFoundError("no /proc"), "the system does not report it: FileNotFoundError: no /proc"),
    "out of memory": (torch.cuda.OutOfMemoryError("out"), "out of memory"),
    "killed": (
        memory.BrokenProcessPool("terminated"),
        "the process that measured it was killed, as a rule for want of memory",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("error", "reason"), CANNOT_MEASURE.values(), ids=CANNOT_MEASURE)
def test_memory_that_cannot_be_measured_has_a_reason(error, reason, monkeypatch):
    class Child:
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731
        submit = lambda *_: Child()  # noqa: E731

        def result(self):
            raise error

    assert measure_in(Child(), print) == reason
    monkeypatch.setattr(groups, "child_process", Child)
    settings = Settings(CPU, "contiguous", "eager", 0.0, memory=True)
    (row,) = measure_group([BASELINE], INFERENCE, settings, print)
    assert row.timing
    assert (row.peak, row.no_peak) == (None, reason)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "best"])
@pytest.mark.parametrize("part", ["build", "forward"])
def test_a_model_that_fails_leaves_a_row(part, layout, monkeypatch):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            if part == "build":
                raise RuntimeError("no such thing")

        def forward(self, image):
            raise RuntimeError("no such thing")

    real = models.build
    monkeypatch.setattr(models, "build", lambda name, *more: Fails() if name == BASELINE else real(name, *more))
    settings = Settings(CPU, layout, "eager", 0.0, memory=False)
    failed, ours = measure_group([BASELINE, OURS], INFERENCE, settings, print)
    assert (failed.reason, failed.timing) == ("RuntimeError: no such thing", None)
    assert (failed.variant is None) == (layout == "best" or part == "build")
    assert (ours.reason, ours.ratio) == (None, ())
    assert math.isfinite(ours.timing.median)
