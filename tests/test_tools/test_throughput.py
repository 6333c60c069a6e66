"""The tool measures what it says, in every option, and writes it down; no time is judged."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mmmsv.analysis.speed import machine, models, report, timing
from mmmsv.analysis.speed.groups import Row
from mmmsv.analysis.speed.plot import curves
from mmmsv.analysis.speed.progress import progress
from mmmsv.analysis.speed.timing import Timing, quantile
from mmmsv.analysis.speed.workload import Peak, Step, Variant
from mmmsv.kernels import dispatch

from .load import ROOT, load_tool, tables_of

CPU = torch.device("cpu")
INFERENCE = Step(64, 64, 1, False, "float32", False)
OURS, BASELINE = "MSVMamba:nano", "torchvision:resnet18"


def groups_of(text):
    """The rows of each table, by the names of its columns; the facts have none, and are left out."""
    return [[dict(zip(header, row, strict=True)) for row in rows] for header, *rows in tables_of(text) if header[0]]


def arguments(*more):
    return ["throughput.py", "nano", *more, "--seconds", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Output, log and folder of the tool with one of our models and a baseline: both kinds, two sizes, no memory."""
    out = tmp_path_factory.mktemp("speed") / "new/folder"
    output, log = io.StringIO(), io.StringIO()
    more = arguments("resnet18", "--sizes", "64", "96x64", "--no-memory", "--out", str(out))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(log):
        patch.setattr("sys.argv", more)
        patch.setattr(timing, "_TURN_SECONDS", 0.02)
        patch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
        load_tool("throughput").main()
    return output.getvalue(), log.getvalue(), out


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured through Linux's /proc")
def test_command_line_with_memory():
    """With MMEngine, and nothing else of OpenMMLab."""
    program = (
        "import runpy, sys; sys.modules |= dict.fromkeys(['mmcv', 'mmdet', 'mmseg', 'mmpretrain'])\n"
        "runpy.run_path('throughput.py', run_name='__main__')"
    )
    _, *options = arguments("--sizes", "64", "--train", "--layout", "contiguous")
    done = subprocess.run(
        [sys.executable, "-c", program, *options],
        cwd=ROOT / "tools",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ((row,),) = groups_of(done.stdout)
    assert (row["H x W"], row["layout, mode"], row["time / first"]) == ("64 x 64", "contiguous, eager", "1")
    # Gradients and the two states of AdamW are beyond the weights, which are 4 bytes a parameter.
    weights = 4e6 * float(row["parameters, M"]) / 2**20
    whole, beyond = (float(row[name]) for name in ("peak, MiB", "beyond weights, MiB"))
    assert whole - beyond == pytest.approx(weights, abs=2)
    assert beyond > 3 * weights


@pytest.mark.slow
def test_json_has_what_the_tables_show(run):
    output, _, out = run
    assert (out / "throughput.md").read_text() == output
    rows = json.loads((out / "throughput.json").read_text())["rows"]
    shown = [row for table in groups_of(output) for row in table]
    assert [(row["kind"], row["model"], row["height"], row["width"]) for row in rows] == [
        (kind, model, *size)
        for kind in ("inference", "training")
        for size in ((64, 64), (64, 96))
        for model in (OURS, BASELINE)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_facts(run):
    facts = json.loads((run[2] / "throughput.json").read_text())["facts"]
    assert (facts["dtype"], facts["layout"], facts["mode"]) == ("float32", "best", "eager")
    assert facts["threads"] == str(torch.get_num_threads())
    assert {"processor", "vector instructions", "load before the start", "commit", "scan backend"} <= set(facts)
    assert machine.choices(torch.device("cpu")).items() <= facts.items()
    assert re.fullmatch(r"\d+ GFLOP/s in float32", facts["product of 2048 x 2048"])
    assert {"torch", "torchvision", "mmmsv", "Triton"} <= set(facts)
    assert all(f"| {name} | {value} |" in run[0] for name, value in facts.items())


@pytest.mark.slow
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
        bar.show("resnet18: round 1")
        bar.advance(INFERENCE, [row_of(BASELINE, INFERENCE, 0.5), Row(OURS, INFERENCE, reason="out of [memory]")])
        shown = sys.stderr.getvalue()
    assert "resnet18: round 1" in shown
    assert "0/2" in shown
    assert "inference, 1 x 64 x 64: resnet18 500 ms, MSVMamba nano failed, out of [memory]" in shown


@pytest.mark.slow
def test_plot_of_several_sizes(run):
    (path,) = run[2].glob("*.png")
    assert path.name == "throughput_batch1.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert all(500 < side < 5000 for side in picture.size)
        assert len(picture.convert("RGB").getcolors(2**20)) > 20


def row_of(name, step, seconds, **more):
    return Row(name, step, Variant("contiguous", "eager"), timing=Timing(((seconds,),)), parameters=10**6, **more)


def test_plot_with_what_failed(tmp_path):
    """Panels of memory come with memory; a model that failed has no points."""
    cases = [
        replace(INFERENCE, height=height, width=width) for height, width in ((224, 224), (800, 1280), (1024, 1024))
    ]
    rows = [row_of(OURS, case, 1e-8 * case.pixels, peak=Peak(2 * case.pixels, case.pixels)) for case in cases]
    rows += [row_of(BASELINE, cases[0], 1e-3), *(Row(BASELINE, case, reason="out of memory") for case in cases[1:])]
    rows += [Row("torchvision:swin_t", case, reason="out of memory") for case in cases]
    curves(rows, tmp_path / "three.png", "a machine")
    curves([replace(row, peak=None) for row in rows], tmp_path / "two.png", "a machine")
    widths = [Image.open(tmp_path / name).size[0] for name in ("two.png", "three.png")]
    assert widths[1] == pytest.approx(1.5 * widths[0], abs=2)


@pytest.mark.slow
def test_report_of_what_failed(run):
    rows = [
        row_of(OURS, INFERENCE, 0.5, ratio=(1.0,), no_peak="no /proc"),
        Row(BASELINE, INFERENCE, reason="out of memory"),
    ]
    text = report.as_markdown({"processor": "none"}, rows)
    ours, baseline = groups_of(text)[0]
    assert (ours["images/s"], ours["latency, ms"], ours["peak, MiB"]) == ("2", "500", "-")
    assert (baseline["images/s"], baseline["latency, ms"], baseline["layout, mode"]) == ("failed", "-", "-")
    assert "resnet18, 64 x 64: failed, out of memory." in text
    assert "MSVMamba nano, 64 x 64: memory not measured, no /proc." in text
    assert report.as_json({}, rows)["rows"][1]["reason"] == "out of memory"


def test_report_of_compiling():
    """What did not run in both modes has no gain, and alone no column."""
    rows = [row_of(OURS, INFERENCE, 1.0, gain_of_compiling=gain) for gain in ((2.0,) * 3, (1.5,) * 3, ())]
    (cells,) = groups_of(report.as_markdown({"processor": "none"}, rows))
    assert [row["eager / compiled"] for row in cells] == ["2 (2-2)", "1.5 (1.5-1.5)", "-"]
    assert report.as_json({}, rows)["rows"][0]["eager_over_compiled_median"] == 2.0
    (cells,) = groups_of(report.as_markdown({"processor": "none"}, rows[2:]))
    assert "eager / compiled" not in cells[0]


def test_figures_of_given_numbers():
    row = Row(OURS, replace(INFERENCE, batch=7), timing=Timing(((2.0, 4.0), (3.0, 3.0), (40.0, 40.0))))
    assert row.images_per_second == 2.0
    assert row.p95 is None  # of six calls
    assert replace(row, timing=Timing((tuple(map(float, range(101))),))).p95 == 95.0


BAD = {
    "tyni": "argument MODEL: there is no model 'tyni'; choose one of nano, micro, tiny, ",
    "Mamba:tiny": "argument MODEL: there is no 'Mamba' to take 'Mamba:tiny' from; choose MSVMamba, VMamba, torchvision",
    "googlenet": "argument MODEL: there is no model 'googlenet'; choose one of nano, micro, tiny, ",
    "--sizes 64 nano": "argument --sizes: 'nano' is no size; give a side such as 224, or width x height as ",
    "--sizes 224x": "argument --sizes: '224x' is no size; give a side such as 224, or width x height as 1280x800",
    "--sizes sweep 64": "--sizes: sweep stands for seven sizes; give it alone, or sizes of your own",
    "--batch 0": "argument --batch: '0' is no whole number of at least 1",
    "--seconds -1": "argument --seconds: ",
    "--dtype int8": "argument --dtype: invalid choice: 'int8'",
    "--device cuda": "--device cuda: torch sees no CUDA device here",
    "vgg11 --backbone-only": "--backbone-only: the four stages of vgg11 are not known here, only those of",
    "--out README.md": "--out README.md: is a file, expected a folder",
}


@pytest.mark.parametrize(("line", "message"), BAD.items(), ids=BAD)
def test_bad_arguments(line, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["throughput.py", *line.split()])
    with pytest.raises(SystemExit) as stopped:
        load_tool("throughput").main()
    assert stopped.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("nonsense", "there is no backend 'nonsense'"),
        ("triton", "backend 'triton' was asked for, and cannot run on cpu: no GPU; choose another, or none"),
    ],
    ids=["unknown", "cannot run"],
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


@pytest.mark.parametrize(("load", "busy"), [(0.5, False), (50.0, True)], ids=["idle", "busy"])
def test_a_warning_of_a_busy_machine(load, busy, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    assert ("the load is 50.0 on " in (machine.why_unreliable() or "")) == busy


def test_a_run_in_which_all_fails_fails(monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["throughput.py", "nano", "--sizes", "1", "--train", "--no-memory", "--seconds", "0"]
    )
    with pytest.raises(SystemExit) as stopped:
        load_tool("throughput").main()
    assert stopped.value.code == 1
    assert "MSVMamba nano, 1 x 1: failed, " in capsys.readouterr().out


def steps(line):
    tool = load_tool("throughput")
    return tool._steps(tool._parser().parse_args(line.split()), CPU)


def test_sizes_are_given_as_width_x_height():
    assert [(step.height, step.width) for step in steps("--sizes 64 1280x800 --train")] == [(64, 64), (800, 1280)]
    assert steps("--sizes sweep") == steps("--sizes 224 384 512 640 768 1024 1280x800")


KINDS = {
    "": ["inference, 1", "training, 1"],
    "--train --inference": ["inference, 1", "training, 1"],
    "--train": ["training, 1"],
    "--inference --batch 4 1 4": ["inference, 4", "inference, 1"],
}


@pytest.mark.parametrize("line", KINDS)
def test_what_is_measured(line):
    assert [f"{step.kind}, {step.batch}" for step in steps(line)] == KINDS[line]
