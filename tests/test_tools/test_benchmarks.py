"""The benchmark writes all its tables and the report on the backends is complete; no time is judged."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from benchmarks import half_precision, op_profile, scan
from benchmarks.cases import MapCase, SequenceCase
from benchmarks.comparison import left_out
from mmmsv.analysis.speed import machine
from mmmsv.analysis.speed.timing import Timing
from mmmsv.kernels import BACKENDS, __main__, whole_block
from mmmsv.kernels.backends.cpu import library
from mmmsv.models import MSVMamba, VMamba

from ..test_kernels.fused_inputs import needs_library
from .load import ROOT, tables_of

# Title of a section: how many tables it has.
TABLES = {
    "MSVMamba-Tiny at 224": 3,
    "Detection at 1280 x 800": 3,
    "Linear in the length": 1,
    "VMamba's four routes": 3,
    "Dtypes": 1,
    "Threads": 1,
    "Memory": 1,
    "The 1-D op": 3,
}


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs a module as ``python -m`` does, but here, where torch is loaded: its status and output."""

    def run_here(line):
        module, *arguments = line.split()
        monkeypatch.setattr("sys.argv", [module, *arguments])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # that it is imported already
                runpy.run_module(module, run_name="__main__")
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        return status, *capsys.readouterr()

    monkeypatch.chdir(ROOT)
    # Which here may be interpreted, for minutes.
    triton = replace(BACKENDS["triton"], why_not=lambda device: "cannot run here")
    monkeypatch.setitem(BACKENDS, "triton", triton)
    return run_here


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """What ``--quick`` on the CPU writes, by title; without MMEngine."""
    output = tmp_path_factory.mktemp("bench") / "results/quick.md"
    program = "import runpy, sys; sys.modules['mmengine'] = None; runpy.run_module('benchmarks.scan', None, '__main__')"
    # The kernels' tests may have asked for Triton's interpreter, which would be measured for minutes.
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program, "--quick", "--device", "cpu", "--output", str(output)],
        cwd=ROOT,
        env={**inherited, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    _, *parts = output.read_text().split("\n## ")
    return dict(part.split("\n", 1) for part in parts)


@pytest.mark.slow
def test_all_tables_are_there(sections):
    assert {title: len(tables_of(sections[title])) for title in TABLES} == TABLES
    assert set(sections) == {*TABLES, "What is compared"}


@pytest.mark.slow
@pytest.mark.parametrize("title", TABLES)
def test_the_numbers_are_finite_and_positive(sections, title):
    for header, *rows in tables_of(sections[title]):
        assert rows
        for row in rows:
            named = zip(header[1:], row[1:], strict=True)
            cells = [(name, cell) for name, cell in named if name and cell]  # no name: forward or forward+backward
            assert cells
            for name, cell in cells:
                value = float(cell.split()[0])
                assert math.isfinite(value), f"{row[0]}, {name}: {cell}"
                assert value > 0, f"{row[0]}, {name}: {cell}"


@pytest.mark.slow
@pytest.mark.parametrize("title", [title for title, tables in TABLES.items() if tables == 3])
def test_the_baselines_agree(sections, title):
    differences = tables_of(sections[title])[2]
    assert "token loop" in differences[0]
    assert all(float(cell) < 1e-4 for _, *cells in differences[1:] for cell in cells)


@pytest.mark.slow
def test_everything_compared_runs_or_has_a_reason(sections):
    (table,) = tables_of(sections["What is compared"])
    state = {name: runs for name, _, runs in table[1:]}
    assert {*BACKENDS, "token loop", "mambapy", "mamba-ssm"} <= set(state)
    assert all(runs == "yes" or re.fullmatch("no: .+", runs) for runs in state.values())
    assert state["mamba-ssm"] == "no: needs a CUDA device"


def killed(bench):
    raise KeyboardInterrupt


def fails(bench):
    raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("second", "ends", "left"),
    [
        (killed, KeyboardInterrupt, {"One": "some text"}),
        (fails, SystemExit, {"One": "some text", "Two": "Failed: ValueError: no such thing.", "Three": "more"}),
    ],
    ids=["killed", "failed"],
)
def test_each_section_is_written_at_once(second, ends, left, monkeypatch, tmp_path):
    tables = {"One": lambda bench: "some text", "Two": second, "Three": lambda bench: "more"}
    monkeypatch.setattr(scan, "TABLES", tables)
    monkeypatch.setattr("sys.argv", ["scan", "--device", "cpu", "--output", str(tmp_path / "x.md")])
    with pytest.raises(ends):
        scan.main()
    parts = (part.split("\n\n", 1) for part in (tmp_path / "x.md").read_text().split("\n## ")[2:])
    assert {title: text.strip() for title, text in parts} == left


def test_a_gpu_does_not_go_through_long_sequences_token_by_token():
    small, large = MapCase(128, 7, 7, 8, 2, routes=("row", "col"), carry=True), SequenceCase(1, 8, 3136, 1, True)
    for name in ("reference", "token loop"):
        assert "3136 tokens" in left_out(name, large, torch.device("cuda"))
        assert left_out(name, small, torch.device("cuda")) is left_out(name, large, torch.device("cpu")) is None
    assert left_out("triton", large, torch.device("cuda")) is None


def test_the_report_lists_every_backend(run):
    status, output, errors = run("mmmsv.kernels")
    assert status == 0, errors
    printed = output.splitlines()
    lines = {line.split()[1]: line for line in printed if line.startswith("cpu ")}
    assert list(lines) == list(BACKENDS)
    of_sequences = [line.split() for line in printed if line.startswith(" " * 20 + "sequences")]
    can_run = [name for name in BACKENDS if BACKENDS[name].why_not(torch.device("cpu")) is None]
    assert len(of_sequences) == len(can_run)
    for _, tokens, forward, both in of_sequences:
        assert int(tokens) > 0
        assert 0 < float(forward) < float(both)
    for name, line in lines.items():
        if reason := BACKENDS[name].why_not(torch.device("cpu")):
            assert f"cannot run: {reason}" in line
        else:
            what, tokens, forward, both = line.split()[2:6]
            assert what == "maps"
            assert int(tokens) > 0
            assert 0 < float(forward) < float(both)
    assert sum("automatic choice" in line for line in lines.values()) == 1


@pytest.mark.parametrize(
    ("asked", "last"),
    [
        ("reference", "Asked for by the environment, instead of the automatic choice: reference"),
        ("nonsense", "Scans on cpu will fail: .*there is no backend 'nonsense'; choose one of .*torch.*"),
    ],
    ids=["reference", "nonsense"],
)
def test_the_report_heeds_the_environment(asked, last, monkeypatch):
    monkeypatch.setattr(__main__, "measure", lambda name, workload, device: (56, 1.0, 3.0))
    monkeypatch.setenv("MMMSV_BACKEND", asked)
    assert re.fullmatch(last, __main__.report(torch.device("cpu"))[-1])


def test_the_report_is_quiet_about_what_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(__main__, "measure", lambda name, workload, device: (56, 1.0, 3.0))
    monkeypatch.delenv("MMMSV_BACKEND", raising=False)
    choices = [line for line in __main__.report(torch.device("cpu")) if line.startswith(" ")]
    assert len(__main__.report(torch.device("cpu"))) == len(BACKENDS) + len(choices)


@needs_library
def test_the_report_tells_what_the_processor_is_given(monkeypatch):
    monkeypatch.setattr(__main__, "measure", lambda name, workload, device: (56, 1.0, 3.0))
    for faster, rows, pairs in ((True, 288, True), (True, 288, False), (False, 0, False)):
        found = library.loaded_library()._replace(
            blocks_are_faster=faster, linear_most_rows=rows, multiplies_pairs=pairs
        )
        monkeypatch.setattr(library, "loaded_library", lambda found=found: found)
        text = "\n".join(__main__.report(torch.device("cpu")))
        assert ("blocks: in one call" in text) == faster
        assert ("bfloat16 of pairs" in text) == pairs
        assert (f"up to {rows} rows" in text) == bool(rows)


BAD = {
    "mmmsv.kernels --speed": "unrecognized arguments: --speed",
    "benchmarks.scan --device cuda": "--device cuda: torch sees no CUDA device here",
    "benchmarks.gpu --out x": "torch sees no CUDA device here; --dry goes through the round on a CPU",
    "benchmarks.scan --output docs": "--output docs: is a folder, expected a file",
    "benchmarks.sequences --maps 56x56": "argument --maps: '56x56' is no size of a map, expected HxWxC, as 56x56x96",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_arguments_end_in_one_line(line, run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, errors = run(line)
    assert status == 2
    assert errors.splitlines()[-1] == f"python -m {line.split()[0]}: error: {BAD[line]}"


def test_ways_to_scan_sequences(run, monkeypatch):
    """Whatever is compared computes the same, or there is an error."""
    monkeypatch.setattr(machine, "facts", lambda device: {"processor": "this one"})
    sizes = "--channels 8 --length 16 --state 2 --maps 3x5x8 --seconds 0"
    status, output, errors = run(f"benchmarks.sequences --only scan block {sizes}")
    assert status == 0, errors
    _, scans, *blocks = tables_of(output)
    assert {"token loop", "token loop, as in mamba-ssm"} < {row[0] for row in scans[1:]}
    assert [row[0] for row in blocks[0][1:]] == ["one scan2d", "cross_scan, selective_scan, cross_merge", "flips"]
    assert len(blocks) == 4
    for table in (scans, *blocks):
        for _, forward, _, both, _, difference in table[1:]:
            assert 0 < float(forward.split()[0]) < float(both.split()[0])
            assert float(difference) < 1e-4


def test_runtimes_that_are_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    status, _, errors = run("benchmarks.runtimes")
    assert status == 2
    assert errors.splitlines()[-1].endswith("; pip install onnx onnxruntime openvino")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_models_keep(device, run):
    """Fake tensors: of a GPU too, where there is none."""
    status, output, errors = run(f"benchmarks.activations nano --batch 1 --size 64 64 --device {device}")
    assert status == 0, errors
    kept = {name: int(size) for name, size in re.findall(r"^\| (.+?) \| (\d+) \|$", output, re.MULTILINE)}
    assert 0 < kept["MSVMamba nano, with_cp"] < kept["MSVMamba nano"] < kept["swin_t"]


def test_polynomials_of_the_kernels_are_those_that_are_fitted(run):
    status, output, errors = run("benchmarks.polynomials")
    assert status == 0, errors
    assert re.findall(r"off by (\S+)", output) == ["1.5e-07", "6.4e-08", "3.2e-07"]
    files = ("tokens", "activations")
    kernels = "".join((ROOT / f"mmmsv/kernels/backends/triton/{name}.py").read_text() for name in files)
    coefficients = [number.strip("-") for number in output.split() if "." in number and len(number) > 12]
    assert coefficients
    assert [number for number in coefficients if number not in kernels] == []


@pytest.mark.skipif(torch.__version__ < (2, 4), reason="autocast on CPUs took no float16 before torch 2.4")
@pytest.mark.parametrize(("backbone", "base"), [(MSVMamba, "nano"), (VMamba, "v2_tiny_s1l8")])
def test_a_model_in_float16_bears_what_autocast_bears(backbone, base, monkeypatch):
    """To within a power of two, whatever is scaled, as long as float16 holds the weight itself."""
    torch.manual_seed(0)
    model = backbone({"base": base, "embed_dims": (16,), "depths": (1,)}, drop_path_rate=0.0)
    for table, kept in (("PRECISIONS", ("float",)), ("WEIGHTS", ("in_proj", "x_proj", "convolutions"))):
        chosen = {name: value for name, value in getattr(half_precision, table).items() if name.startswith(kept)}
        monkeypatch.setattr(half_precision, table, chosen)
    of = list(half_precision.PRECISIONS)
    scales = {
        kind: dict(zip(of, row, strict=True)) for kind, row in half_precision.rows(model, torch.randn(1, 3, 24, 24))
    }
    assert {"image", "in_proj", "x_proj", "loss (gradients)"} <= scales.keys()
    for kind, largest in scales.items():
        assert -1 < largest["float16, autocast"] <= largest["float32"]
        held = 15 if kind in half_precision.WEIGHTS else largest["float32"]  # weights of 1
        assert largest["float16, whole"] >= min(largest["float16, autocast"], held) - 1, kind


@pytest.mark.parametrize("whole", [False, True], ids=["ops", "steps of blocks"])
def test_profile_of_a_model(whole, monkeypatch, capsys):
    if whole and (library.why_not(torch.device("cpu")) or not library.library().blocks_are_faster):
        pytest.skip("blocks are computed in one call with AVX-512")
    monkeypatch.setattr(op_profile, "take_turns", lambda *_: ({"step": Timing(((0.5,),))}, {}))
    monkeypatch.setattr(op_profile, "_CALLS", 1)
    monkeypatch.setattr(op_profile, "_ROWS", 100)
    monkeypatch.setattr("sys.argv", ["op_profile", "nano", "--size", "32", "32", "--dtype", "bfloat16"])
    if not whole:
        monkeypatch.setattr(whole_block, "is_asked_for", lambda x: False)
    op_profile.main()
    output = capsys.readouterr().out
    ((header, *rows),) = tables_of(output)
    assert header == ["op", "calls", "ms", "%"]
    assert (["block: scan", "1"] if whole else ["mmmsv::scan2d", "20"]) in [row[:2] for row in rows]
    assert "mmmsv::blocks" not in output
    assert output.splitlines()[-1].startswith("500 ms a step")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured through Linux's /proc")
def test_round_on_a_gpu_without_one(run, tmp_path, monkeypatch):
    """All sections, in tiny sizes."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # which is set there, and set back here
    status, _, errors = run(f"benchmarks.gpu --out {tmp_path} --dry")
    assert status == 0, errors
    assert not (tmp_path / "errors.txt").exists()
    sections = {"environment", "tests", "check", "graphs", "scans", "models", "profile", "parts"}
    rows = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(rows) == sections
    errors = [float(row["largest relative error"]) for row in rows["check"]]
    assert len(errors) == 10
    assert max(errors) < 0.05
    assert all(row["same bits as without"] for row in rows["graphs"])
    assert (tmp_path / "README.md").read_text().count("\n## ") == len(sections)
    assert rows["tests"][0]["result"].startswith("11 passed")  # of a kernel, and golden tensors
    assert {row["step"] for row in rows["models"] if row["peak memory, GiB"] > 0} == {
        "inference, 2 x 64 x 64",
        "training, 2 x 64 x 64",
        "training, 2 x 64 x 96, maps",
    }
