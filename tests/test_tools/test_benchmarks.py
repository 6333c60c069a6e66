"""The benchmark writes all its tables and the report on the backends is complete; no time is judged."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch

from mmmsv.kernels import BACKENDS, __main__

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


def run(*arguments, **environment):
    # The kernels' tests may have asked for Triton's interpreter, which would be measured for minutes.
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """What ``--quick`` on the CPU writes, by title."""
    output = tmp_path_factory.mktemp("bench") / "results/quick.md"
    done = run("-m", "benchmarks.scan", "--quick", "--device", "cpu", "--output", str(output))
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


@pytest.mark.slow
def test_the_report_lists_every_backend():
    done = run("-m", "mmmsv.kernels")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("cpu ")}
    assert list(lines) == list(BACKENDS)
    for name, line in lines.items():
        if name == "triton":  # in this process, but not in that one, Triton may be interpreted
            assert "cannot run: " in line
        elif reason := BACKENDS[name].why_not(torch.device("cpu")):
            assert f"cannot run: {reason}" in line
        else:
            side, forward, both = line.split()[2:5]
            assert int(side) > 0
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
    monkeypatch.setattr(__main__, "measure", lambda name, device: (56, 1.0, 3.0))
    monkeypatch.setenv("MMMSV_BACKEND", asked)
    assert re.fullmatch(last, __main__.report(torch.device("cpu"))[-1])


def test_the_report_is_quiet_about_what_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(__main__, "measure", lambda name, device: (56, 1.0, 3.0))
    monkeypatch.delenv("MMMSV_BACKEND", raising=False)
    assert len(__main__.report(torch.device("cpu"))) == len(BACKENDS)


BAD = {
    "mmmsv.kernels --speed": "unrecognized arguments: --speed",
    "benchmarks.scan --device cuda": "--device cuda: torch sees no CUDA device here",
    "benchmarks.gpu --out x": "torch sees no CUDA device here; --dry goes through the round on a CPU",
    "benchmarks.scan --output docs": "--output docs: is a folder, expected a file",
}


@pytest.mark.slow
@pytest.mark.parametrize("line", BAD)
def test_bad_arguments_end_in_one_line(line):
    module, *arguments = line.split()
    done = run("-m", module, *arguments, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"python -m {module}: error: {BAD[line]}"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_models_keep(device):
    """Fake tensors: of a GPU too, where there is none."""
    done = run(*f"-m benchmarks.activations nano --batch 1 --size 64 64 --device {device}".split())
    assert done.returncode == 0, done.stderr
    kept = {name: int(size) for name, size in re.findall(r"^\| (.+?) \| (\d+) \|$", done.stdout, re.MULTILINE)}
    assert 0 < kept["MSVMamba nano, with_cp"] < kept["MSVMamba nano"] < kept["swin_t"]


def test_polynomials_of_the_kernels_are_those_that_are_fitted():
    done = run("-m", "benchmarks.polynomials")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"off by (\S+)", done.stdout) == ["1.5e-07", "6.4e-08", "3.2e-07"]
    files = ("tokens", "activations")
    kernels = "".join((ROOT / f"mmmsv/kernels/backends/triton/{name}.py").read_text() for name in files)
    coefficients = [number.strip("-") for number in done.stdout.split() if "." in number and len(number) > 12]
    assert coefficients
    assert [number for number in coefficients if number not in kernels] == []


@pytest.mark.slow
def test_round_on_a_gpu_without_one(tmp_path):
    """All sections, in tiny sizes."""
    done = run("-m", "benchmarks.gpu", "--out", str(tmp_path), "--dry")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "errors.txt").exists()
    sections = {"environment", "tests", "check", "scans", "models", "profile", "parts"}
    assert {path.stem for path in tmp_path.glob("*.json")} == sections
    errors = [float(row["largest relative error"]) for row in json.loads((tmp_path / "check.json").read_text())]
    assert len(errors) == 10
    assert max(errors) < 0.05
    assert (tmp_path / "README.md").read_text().count("\n## ") == len(sections)
    assert "passed" in json.loads((tmp_path / "tests.json").read_text())[0]["result"]
