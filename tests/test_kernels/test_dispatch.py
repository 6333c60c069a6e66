"""Which backend computes: asked for, by default, and what is said where one cannot."""

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmmsv
from mmmsv.kernels import BACKENDS, dispatch, selective_scan, use_backend
from mmmsv.kernels.backends.cpu import library as native_library

from .scan_inputs import scan_inputs

CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch):
    """The names of the backends that compute, as they come."""
    names = []
    for name, backend in BACKENDS.items():
        spy = lambda scan, name=name, real=backend.selective_scan.forward: names.append(name) or real(scan)  # noqa: E731
        kernel = dataclasses.replace(backend.selective_scan, forward=spy)
        monkeypatch.setitem(BACKENDS, name, dataclasses.replace(backend, selective_scan=kernel))
    return names


@pytest.fixture
def without_cpu(monkeypatch):
    broken = dataclasses.replace(BACKENDS["cpu"], why_not=lambda device: "its library is on holiday")
    monkeypatch.setitem(BACKENDS, "cpu", broken)
    monkeypatch.setattr(dispatch, "_logged", set())


def test_the_choice(calls, monkeypatch):
    inputs = scan_inputs(dtype=torch.float32)
    selective_scan(**inputs)
    with use_backend("reference"):
        selective_scan(**inputs)
        with use_backend("torch"):
            selective_scan(**inputs)
        selective_scan(**inputs)
    monkeypatch.setenv("MMMSV_BACKEND", "reference")
    selective_scan(**inputs)
    with use_backend("torch"):
        selective_scan(**inputs)
    assert calls == [
        dispatch.automatic(lambda backend: backend.name, CPU),
        "reference",
        "torch",
        "reference",
        "reference",
        "torch",
    ]


def test_a_backend_that_there_is_not(monkeypatch):
    monkeypatch.setenv("MMMSV_BACKEND", "abacus")
    message = f"MMMSV_BACKEND: there is no backend 'abacus'; choose one of {', '.join(BACKENDS)}"
    with pytest.raises(ValueError, match=message):
        selective_scan(**scan_inputs(dtype=torch.float32))
    with pytest.raises(ValueError, match="no backend 'abacus'"), use_backend("abacus"):
        pass


def test_asked_for_one_that_cannot_run(without_cpu):
    message = "backend 'cpu' was asked for, and cannot run on cpu: its library is on holiday; choose another"
    with use_backend("cpu"), pytest.raises(RuntimeError, match=message):
        selective_scan(**scan_inputs(dtype=torch.float32))


def test_the_automatic_choice_falls_through_and_says_so_once(without_cpu, calls, caplog):
    with caplog.at_level(logging.WARNING, logger="mmmsv.kernels"):
        for _ in range(2):
            selective_scan(**scan_inputs(dtype=torch.float32))
    assert calls == ["torch", "torch"]
    assert [record.message for record in caplog.records] == [
        "backend 'cpu' cannot run on cpu: its library is on holiday; taking a slower one"
    ]


def test_a_backend_knows_its_devices():
    assert "CPUs only" in BACKENDS["cpu"].why_not(torch.device("cuda"))
    assert BACKENDS["torch"].why_not(torch.device("meta")) is None


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler here")
def test_the_library_is_built_where_a_compiler_is():
    assert native_library.why_not(CPU) is None


@pytest.fixture
def asked_anew():
    """The library is looked for again, in the test and after it."""
    native_library.library.cache_clear()
    yield
    native_library.library.cache_clear()


def test_without_the_library(monkeypatch, asked_anew):
    monkeypatch.setattr(native_library, "library_path", lambda: None)
    reason = native_library.why_not(CPU)
    assert "was not built when mmmsv was installed" in reason
    assert reason.endswith(f"that was never installed: {Path(mmmsv.__file__).parents[1]}")


def test_a_library_that_does_not_load(monkeypatch, tmp_path, asked_anew):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native_library, "library_path", lambda: broken)
    assert "does not load: " in native_library.why_not(CPU)


@pytest.mark.skipif(native_library.why_not(CPU) is not None, reason="there is no C++ library here")
def test_a_library_of_other_sources(monkeypatch, asked_anew):
    monkeypatch.setattr(native_library, "sources", lambda: 1)
    assert "was built from other sources" in native_library.why_not(CPU)


@pytest.mark.skipif(native_library.why_not(CPU) is not None, reason="there is no C++ library here")
def test_a_library_without_its_sources(monkeypatch, asked_anew):
    def sources():
        raise FileNotFoundError(2, "No such file or directory", "csrc")

    monkeypatch.setattr(native_library, "sources", sources)
    assert "cannot be compared with the sources beside it: [Errno 2]" in native_library.why_not(CPU)


@pytest.mark.skipif(native_library.why_not(CPU) is not None, reason="there is no C++ library here")
def test_a_library_of_older_sources_that_lack_an_op(monkeypatch, asked_anew):
    class Older:
        mmmsv_sources = staticmethod(lambda: 1)

    monkeypatch.setattr(native_library, "load", lambda path: Older())
    assert "was built from other sources" in native_library.why_not(CPU)


@pytest.mark.skipif(native_library.why_not(CPU) is not None, reason="there is no C++ library here")
@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX512", "AVX2", "DEFAULT"])
def test_every_build_computes_the_same(instructions):
    """The libraries for older processors, too, where this one can run them."""
    if instructions == "AVX512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512")
    script = (
        "import torch\n"
        "from mmmsv.kernels.backends.cpu import library as native_library\n"
        "from tests.test_kernels.scan_inputs import *\n"
        "case = MapCase(size=(9, 11), dim=21, state=2, routes=('row_rev', 'col'), carry=True, dtype=torch.float32)\n"
        "for ours, theirs in zip(run_map('cpu', case.inputs(), case.options), exact_map(case), strict=True):\n"
        "    assert_near(ours, theirs, 2e-5)\n"
        "print(native_library.library_path().name)\n"
    )
    environment = {"ATEN_CPU_CAPABILITY": {"DEFAULT": "default"}.get(instructions, instructions.lower())}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = {"DEFAULT": "baseline"}.get(instructions, instructions.lower())
    assert done.stdout.startswith(f"_cpu_{expected}.")
