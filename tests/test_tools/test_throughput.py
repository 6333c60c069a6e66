"""The tool measures what it says, in every option, and writes it down; no time is judged."""

import io
import json
import math
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from itertools import count

import pytest
import torch
from PIL import Image
from torch import nn

from mmmsv.analysis import parameters
from mmmsv.analysis.speed import machine, measure, models, report, timing, workload
from mmmsv.analysis.speed.measure import Row, Settings, choose, measure_group
from mmmsv.analysis.speed.memory import rise
from mmmsv.analysis.speed.plot import curves
from mmmsv.analysis.speed.progress import progress
from mmmsv.analysis.speed.timing import Turns, explain, quantile, take_turns
from mmmsv.analysis.speed.workload import Case, Peak, Variant, Workload
from mmmsv.kernels import dispatch

from .load import ROOT, load_tool

CPU = torch.device("cpu")
EAGER = Variant("contiguous", "eager")
TRAINING = Case(64, 64, 1, True, "float32", False)
INFERENCE = replace(TRAINING, training=False)
OURS, PEER = "MSVMamba:nano", "torchvision:resnet18"


def tables_of(text):
    """The rows of each table, by the names of its columns; the facts have none, and are left out."""
    blocks = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    tables = [[[cell.strip() for cell in line.strip("|").split("|")] for line in b.splitlines()] for b in blocks]
    return [[dict(zip(header, row, strict=True)) for row in rows] for header, _, *rows in tables if header[0]]


def arguments(*more):
    return ["throughput.py", "nano", *more, "--seconds", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Output, log and folder of the tool with one of our models and a peer: both kinds, two sizes, no memory."""
    out = tmp_path_factory.mktemp("speed") / "new/folder"
    output, log = io.StringIO(), io.StringIO()
    more = arguments("resnet18", "--sizes", "64", "96x64", "--no-memory", "--out", str(out))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(log):
        patch.setattr("sys.argv", more)
        patch.setattr(timing, "_TURN_SECONDS", 0.02)
        patch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
        load_tool("throughput").main()
    return output.getvalue(), log.getvalue(), out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured through Linux's /proc")
def test_command_line_with_memory():
    done = subprocess.run(
        [sys.executable, *arguments("--sizes", "64", "--train", "--layout", "contiguous")],
        cwd=ROOT / "tools",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    ((row,),) = tables_of(done.stdout)
    assert (row["H x W"], row["layout, mode"], row["time / first"]) == ("64 x 64", "contiguous, eager", "1")
    # Gradients and the two states of AdamW are beyond the weights, which are 4 bytes a parameter.
    weights = 4e6 * float(row["parameters, M"]) / 2**20
    whole, beyond = (float(row[name]) for name in ("peak, MiB", "beyond weights, MiB"))
    assert whole - beyond == pytest.approx(weights, abs=2)
    assert beyond > 3 * weights


def test_json_has_what_the_tables_show(run):
    output, _, out = run
    assert (out / "throughput.md").read_text() == output
    rows = json.loads((out / "throughput.json").read_text())["rows"]
    shown = [row for table in tables_of(output) for row in table]
    assert [(row["kind"], row["model"], row["height"], row["width"]) for row in rows] == [
        (kind, model, *size)
        for kind in ("inference", "training")
        for size in ((64, 64), (64, 96))
        for model in (OURS, PEER)
    ]
    for row, cells in zip(rows, shown, strict=True):
        assert cells["H x W"] == f"{row['height']} x {row['width']}"
        assert cells["model"] == models.short_name(row["model"])
        assert cells["parameters, M"] == f"{row['parameters'] / 1e6:.2f}"
        assert cells["layout, mode"] == f"{row['layout']}, eager"
        assert float(cells["images/s"]) == pytest.approx(row["images_per_second"], rel=0.01)
        assert float(cells["latency, ms"].split()[0]) == pytest.approx(1e3 * row["median_seconds"], rel=0.01)
        assert int(cells["calls"]) == sum(map(len, row["seconds"]))
        if row["p95_seconds"] is None:
            assert cells["p95, ms"] == "-"
        else:
            assert float(cells["p95, ms"]) == pytest.approx(1e3 * row["p95_seconds"], rel=0.01)
        assert float(cells["time / first"].split()[0]) == pytest.approx(row["time_ratio_median"], rel=0.01)
        assert cells["peak, MiB"] == cells["beyond weights, MiB"] == "-"


def test_figures_follow_from_the_samples(run):
    rows = json.loads((run[2] / "throughput.json").read_text())["rows"]
    for first, row in ((rows[i - i % 2], row) for i, row in enumerate(rows)):
        calls = [seconds for turn in row["seconds"] for seconds in turn]
        assert len(row["seconds"]) >= 3
        assert all(0 < seconds < 60 for seconds in calls)
        assert row["median_seconds"] == quantile(calls, 0.5)
        assert row["p95_seconds"] == (quantile(calls, 0.95) if len(calls) >= 20 else None)
        assert row["images_per_second"] == row["batch"] / row["median_seconds"]
        pairs = zip(row["seconds"], first["seconds"], strict=True)
        of_rounds = [quantile(mine, 0.5) / quantile(its, 0.5) for mine, its in pairs]
        for name, q in (("p10", 0.1), ("median", 0.5), ("p90", 0.9)):
            assert row[f"time_ratio_{name}"] == pytest.approx(quantile(of_rounds, q))
        tried = {trial["layout"]: trial["result"] for trial in row["trials"]}
        assert set(tried) == {"channels_last", "contiguous"}
        assert row["layout"] == min(tried, key=tried.get)


def test_facts(run):
    facts = json.loads((run[2] / "throughput.json").read_text())["facts"]
    assert (facts["dtype"], facts["layout"], facts["mode"]) == ("float32", "best", "eager")
    assert facts["threads"] == str(torch.get_num_threads())
    assert {"processor", "vector instructions", "load before the start", "commit", "scan backend"} <= set(facts)
    assert {"torch", "torchvision", "mmmsv", "Triton"} <= set(facts)
    assert all(f"| {name} | {value} |" in run[0] for name, value in facts.items())


def test_no_bar_where_stderr_is_no_terminal(run):
    lines = [line for line in run[1].splitlines() if not line.startswith("scan backend")]
    starts = [f"{kind}, 1 x {size}" for kind in ("inference", "training") for size in ("64 x 64", "64 x 96")]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert re.fullmatch(rf"{start}: MSVMamba nano \S+ ms, resnet18 \S+ ms", line)


def test_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress(2) as bar:
        bar.tell("resnet18: round 1")
        bar.advance(INFERENCE, [row_of(PEER, INFERENCE, 0.5), Row(OURS, INFERENCE, reason="out of [memory]")])
        shown = sys.stderr.getvalue()
    assert "resnet18: round 1" in shown
    assert "0/2" in shown
    assert "inference, 1 x 64 x 64: resnet18 500 ms, MSVMamba nano failed, out of [memory]" in shown


def test_plot_of_several_sizes(run):
    (path,) = run[2].glob("*.png")
    assert path.name == "throughput_batch1.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert all(500 < side < 5000 for side in picture.size)
        assert len(picture.convert("RGB").getcolors(2**20)) > 20


def row_of(name, case, seconds, **more):
    return Row(name, case, EAGER, turns=Turns(((seconds,),)), parameters=10**6, **more)


def test_plot_with_what_failed(tmp_path):
    """Panels of memory come with memory; a model that failed has no points."""
    cases = [
        replace(INFERENCE, height=height, width=width) for height, width in ((224, 224), (800, 1280), (1024, 1024))
    ]
    rows = [row_of(OURS, case, 1e-8 * case.pixels, peak=Peak(2 * case.pixels, case.pixels)) for case in cases]
    rows += [row_of(PEER, cases[0], 1e-3), *(Row(PEER, case, reason="out of memory") for case in cases[1:])]
    rows += [Row("torchvision:swin_t", case, reason="out of memory") for case in cases]
    curves(rows, tmp_path / "three.png", "a machine")
    curves([replace(row, peak=None) for row in rows], tmp_path / "two.png", "a machine")
    widths = [Image.open(tmp_path / name).size[0] for name in ("two.png", "three.png")]
    assert widths[1] == pytest.approx(1.5 * widths[0], abs=2)


def test_statistics_of_given_numbers():
    """Ratios are of rounds, not of medians: here the machine became ten times as slow in the third one."""
    mine, its = Turns(((2.0, 4.0), (3.0, 3.0), (40.0, 40.0))), Turns(((1.0,), (1.0,), (10.0,)))
    assert mine.ratio(its) == (3.0, 3.0, 4.0)
    assert its.ratio(its) == (1.0, 1.0, 1.0)
    assert mine.calls == (2.0, 4.0, 3.0, 3.0, 40.0, 40.0)
    assert mine.median == 3.5
    row = Row(OURS, replace(INFERENCE, batch=7), turns=mine)
    assert row.images_per_second == 2.0
    assert row.p95 is None  # of six calls
    assert replace(row, turns=Turns((tuple(map(float, range(101))),))).p95 == 95.0
    assert quantile([float(i) for i in range(101)], 0.95) == 95.0
    assert timing.ratios([1.0, 2.0, 3.0], [4.0]) == (0.5,)


def test_report_of_what_failed(run):
    rows = [
        row_of(OURS, INFERENCE, 0.5, ratio=(1.0,), no_peak="no /proc"),
        Row(PEER, INFERENCE, reason="out of memory"),
    ]
    text = report.as_markdown({"processor": "none"}, rows)
    ours, peer = tables_of(text)[0]
    assert (ours["images/s"], ours["latency, ms"], ours["peak, MiB"]) == ("2", "500", "-")
    assert (peer["images/s"], peer["latency, ms"], peer["layout, mode"]) == ("failed", "-", "-")
    assert "resnet18, 64 x 64: failed, out of memory." in text
    assert "MSVMamba nano, 64 x 64: memory not measured, no /proc." in text
    assert report.as_json({}, rows)["rows"][1]["reason"] == "out of memory"


def test_gain_of_compiling(monkeypatch):
    """Each mode counts in its faster layout; what did not run in both modes has no gain, and alone no column."""
    seconds = {"eager": (3.0, 4.0), "compiled": (2.0, 1.5)}  # channels_last, contiguous
    monkeypatch.setattr(measure, "Workload", lambda *_: FakeWorkload())

    def row_where(broken):
        def stub(calls, *_, **__):
            took = {key: seconds[key.mode][key.layout == "contiguous"] for key in calls if key != broken}
            reasons = {key: "no compiler" for key in calls if key == broken}
            return {key: Turns(((its,),) * 3) for key, its in took.items()}, reasons

        monkeypatch.setattr(measure, "take_turns", stub)
        row = row_of(OURS, INFERENCE, 1.0)
        measure._in_its_fastest_variant(row, Settings(CPU, "best", "best", 0.0, memory=False), lambda text: None)
        return row

    rows = [row_where(broken) for broken in (None, Variant("contiguous", "compiled"))]
    assert [row.gain_of_compiling for row in rows] == [(2.0,) * 3, (1.5,) * 3]
    rows.append(row_of(PEER, INFERENCE, 1.0))
    (cells,) = tables_of(report.as_markdown({"processor": "none"}, rows))
    assert [row["eager / compiled"] for row in cells] == ["2 (2-2)", "1.5 (1.5-1.5)", "-"]
    assert report.as_json({}, rows)["rows"][0]["eager_over_compiled_median"] == 2.0
    (cells,) = tables_of(report.as_markdown({"processor": "none"}, rows[2:]))
    assert "eager / compiled" not in cells[0]


class FakeWorkload:
    parameters = 10**6


class Clock:
    """Stands in for the clock: each call takes as long as it says."""

    def __init__(self, monkeypatch):
        self.log = []
        monkeypatch.setattr(timing, "_clock", lambda device: lambda call, repeats: call())
        now = count()
        monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))

    def call(self, name, *seconds):
        """Take the given seconds in turn, then the last of them for ever; an exception is raised."""
        left = list(seconds)

        def call():
            self.log.append(name)
            taken = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(taken, Exception):
                raise taken
            return taken

        return call


def test_turns_are_taken(monkeypatch):
    clock = Clock(monkeypatch)
    calls = {"a": clock.call("a", 9.0, 1.0), "b": clock.call("b", 2.0)}
    turns, reasons = take_turns(calls, CPU, 0, 4)
    assert (turns, reasons) == ({"a": Turns(((1.0,),) * 4), "b": Turns(((2.0,),) * 4)}, {})
    # Two calls of each to warm up, no time being left for more; then each round begins with another one.
    assert "".join(clock.log) == "aabb" + "ba" + "ab" + "ba" + "ab"


def test_warm_up_goes_on_until_times_settle(monkeypatch):
    clock = Clock(monkeypatch)
    turns, _ = take_turns({"a": clock.call("a", 90.0, 9.0, 3.0, 1.0)}, CPU, 1000, 1)
    assert set(turns["a"].calls) == {1.0}


def test_short_calls_are_repeated_in_a_turn(monkeypatch):
    clock = Clock(monkeypatch)
    turns, _ = take_turns({"a": clock.call("a", 0.05), "b": clock.call("b", 1e-6)}, CPU, 0, 3)
    assert [len(turn) for turn in turns["a"].rounds] == [4, 4, 4]
    assert [len(turn) for turn in turns["b"].rounds] == [20, 20, 20]


def test_one_that_fails_does_not_stop_the_others(monkeypatch):
    clock = Clock(monkeypatch)
    late = clock.call("late", 1.0, 1.0, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"))
    at_once = clock.call("at once", ValueError("too small\nreally"))
    # torchvision's vision transformers raise one of these for a size that they were not made for.
    asserts = clock.call("asserts", AssertionError("Wrong image height!"))
    calls = {"late": late, "at once": at_once, "asserts": asserts, "good": clock.call("good", 1.0)}
    turns, reasons = take_turns(calls, CPU, 0)
    assert turns == {"good": Turns(((1.0,),) * 3)}
    assert reasons == {
        "late": "out of memory",
        "at once": "ValueError: too small",
        "asserts": "AssertionError: Wrong image height!",
    }


def test_what_went_wrong_is_told_in_a_line():
    assert (
        explain(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")) == "out of memory"
    )
    assert explain(MemoryError()) == "out of memory"
    assert explain(RuntimeError("a | b")) == "RuntimeError: a / b"
    assert len(explain(RuntimeError("a" * 1000))) == 160


def test_the_faster_variant_is_chosen():
    first, second, third = (Variant(layout, "eager") for layout in ("channels_last", "contiguous", "other"))
    assert choose({first: 2.0, second: 1.0, third: "out of memory"}) == second
    assert choose({first: 1.0, second: 2.0}) == first
    assert choose({first: "out of memory"}) is None


@pytest.mark.parametrize("fast", workload.LAYOUTS)
def test_each_model_takes_its_faster_layout(fast, monkeypatch):
    def stub(calls, device, seconds, *rest, **named):
        return {key: Turns(((1.0 if key[0] == fast else 2.0,),) * 3) for key in calls}, {}

    monkeypatch.setattr(measure, "take_turns", stub)
    settings = Settings(CPU, "best", "eager", 0.0, memory=False)
    (row,) = measure_group([OURS], INFERENCE, settings, print)
    assert row.variant == Variant(fast, "eager")
    assert row.trials == {Variant(layout, "eager"): 1.0 if layout == fast else 2.0 for layout in workload.LAYOUTS}


def test_variants():
    settings = Settings(CPU, "best", "best", 1.0, True)
    assert len(set(settings.variants)) == 4
    assert replace(settings, layout="contiguous", mode="compiled").variants == [Variant("contiguous", "compiled")]


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("name", [OURS, PEER])
def test_a_training_step_trains(name, maps):
    work = Workload(name, replace(TRAINING, maps=maps), EAGER, CPU)
    before = {key: parameter.detach().clone() for key, parameter in work.model.named_parameters()}
    take_turns({name: work}, CPU, 0, 1)
    after = dict(work.model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in after.values())
    same = [key for key in before if torch.equal(before[key], after[key])]
    assert same == []
    assert work.model.training
    assert all(parameter.grad is None for parameter in after.values())
    assert work.parameters == parameters(work.model)


def test_inference_leaves_the_model_alone():
    work = Workload(PEER, INFERENCE, EAGER, CPU)
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
    work = Workload(PEER, replace(INFERENCE, dtype=dtype), EAGER, CPU)
    seen = []
    work.model.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    work()
    assert seen == [(torch.float32, getattr(torch, dtype))]
    assert {parameter.dtype for parameter in work.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("layout", workload.LAYOUTS)
def test_layout_is_that_of_weights_and_images(layout):
    work = Workload(PEER, replace(INFERENCE, batch=2), Variant(layout, "eager"), CPU)
    for tensor in (work.image, work.model.layer1[0].conv1.weight):
        assert tensor.is_contiguous(memory_format=workload.LAYOUTS[layout])


def test_memory_is_released_where_a_step_fails():
    work = Workload(PEER, TRAINING, EAGER, CPU)

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
    work = Workload(PEER, INFERENCE, Variant("contiguous", "compiled"), CPU)
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
def test_the_maps_are_those_of_the_whole_peer(arch):
    """All of the peer runs but for its head: the last map is what goes into it."""
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
    assert [models.short_name(models.full_name(name)) for name in ("v3_tiny", "swin_t")] == [
        "MSVMamba v3_tiny",
        "swin_t",
    ]
    assert all(models.why_no_maps(models.full_name(name)) is None for name in ("tiny", *models.PEERS))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_memory_grows_with_the_batch():
    """In this process, which has used memory before: a batch of 16 is far beyond what that hides."""
    peaks = []
    for batch in (1, 16):
        work = Workload(PEER, replace(TRAINING, batch=batch), EAGER, CPU)
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_the_rise_of_memory_is_that_of_the_call():
    numbers = 16 * 2**20
    before = torch.ones(numbers)  # is not counted
    assert rise(lambda: before + 1, CPU) == pytest.approx(4 * numbers, rel=0.1)


def test_the_rise_of_memory_on_a_gpu_is_told_by_torch(monkeypatch):
    state = {"now": 7, "peak": 100}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: state.update(peak=state["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: state["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: state["peak"])
    assert rise(lambda: state.update(peak=30, now=9), torch.device("cuda")) == 23


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError("no /proc"), "the system does not tell: FileNotFoundError: no /proc"),
        (torch.cuda.OutOfMemoryError("out"), "out of memory"),
        (
            measure.BrokenProcessPool("terminated"),
            "the process that measured it was killed, as a rule for want of memory",
        ),
    ],
)
def test_memory_that_cannot_be_measured_has_a_reason(error, reason, monkeypatch):
    class Child:
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731
        submit = lambda *_: Child()  # noqa: E731

        def result(self):
            raise error

    monkeypatch.setattr(measure, "child_process", Child)
    row = Row(OURS, INFERENCE, EAGER)
    measure._measure_in_child(row, CPU)
    assert (row.peak, row.no_peak) == (None, reason)


def test_a_model_that_fails_leaves_a_row(monkeypatch):
    class Fails(nn.Module):
        def forward(self, image):
            raise RuntimeError("no such thing")

    real = models.build
    monkeypatch.setattr(models, "build", lambda name, maps: Fails() if name == PEER else real(name, maps))
    settings = Settings(CPU, "contiguous", "eager", 0.0, memory=False)
    failed, ours = measure_group([PEER, OURS], INFERENCE, settings, print)
    assert (failed.reason, failed.turns) == ("RuntimeError: no such thing", None)
    assert (ours.reason, ours.ratio) == (None, ())
    assert math.isfinite(ours.turns.median)


BAD = [
    (["tyni"], "argument MODEL: there is no model 'tyni'; choose one of nano, micro, tiny, "),
    (
        ["Mamba:tiny"],
        "argument MODEL: there is no 'Mamba' to take 'Mamba:tiny' from; choose MSVMamba, VMamba, torchvision",
    ),
    (["googlenet"], "argument MODEL: there is no model 'googlenet'; choose one of nano, micro, tiny, "),
    (["--sizes", "64", "nano"], "argument --sizes: 'nano' is no size; give a side such as 224, or width x height as "),
    (
        ["--sizes", "224x"],
        "argument --sizes: '224x' is no size; give a side such as 224, or width x height as 1280x800",
    ),
    (["--sizes", "sweep", "64"], "--sizes: sweep stands for seven sizes; give it alone, or sizes of your own"),
    (["--batch", "0"], "argument --batch: '0' is no whole number of at least 1"),
    (["--seconds", "-1"], "argument --seconds: "),
    (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    (["--device", "cuda"], "--device cuda: torch sees no CUDA device here"),
    (["vgg11", "--backbone-only"], "--backbone-only: the four stages of vgg11 are not known here, only those of"),
    (["--out", "README.md"], "--out README.md: is a file, expected a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_arguments(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["throughput.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        load_tool("throughput").main()
    assert stopped.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("nonsense", "there is no scan backend 'nonsense'"),
        ("triton", "scan backend 'triton' was asked for, and cannot run on cpu: no GPU; choose another, or none"),
    ],
)
def test_scan_backend_that_is_not_there(backend, message, monkeypatch, capsys):
    # Here Triton's interpreter could run it.
    triton = replace(dispatch.BACKENDS["triton"], why_not=lambda device: "no GPU")
    monkeypatch.setitem(dispatch.BACKENDS, "triton", triton)
    monkeypatch.setenv("MMMSV_BACKEND", backend)
    monkeypatch.setattr("sys.argv", arguments())
    with pytest.raises(SystemExit) as stopped:
        load_tool("throughput").main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("load", "told"), [(0.5, False), (50.0, True)])
def test_a_busy_machine_is_told(load, told, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    assert ("the load is 50.0 on " in (machine.why_unreliable() or "")) == told


def test_a_run_in_which_all_fails_fails(monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["throughput.py", "nano", "--sizes", "1", "--train", "--no-memory", "--seconds", "0"]
    )
    with pytest.raises(SystemExit) as stopped:
        load_tool("throughput").main()
    assert stopped.value.code == 1
    assert "MSVMamba nano, 1 x 1: failed, " in capsys.readouterr().out


def cases(*arguments):
    tool = load_tool("throughput")
    return tool._cases(tool._parser().parse_args(arguments), CPU)


def test_sizes_are_given_as_width_x_height():
    assert [(case.height, case.width) for case in cases("--sizes", "64", "1280x800", "--train")] == [
        (64, 64),
        (800, 1280),
    ]
    sweep, spelt = (cases("--sizes", *text.split()) for text in ("sweep", "224 384 512 640 768 1024 1280x800"))
    assert sweep == spelt


def test_what_is_measured():
    assert [case.kind for case in cases()] == ["inference", "training"]
    assert [case.kind for case in cases("--train", "--inference")] == ["inference", "training"]
    assert [case.kind for case in cases("--train")] == ["training"]
    assert [(case.kind, case.batch) for case in cases("--inference", "--batch", "4", "1", "4")] == [
        ("inference", 4),
        ("inference", 1),
    ]
