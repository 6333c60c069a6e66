"""The C++ library under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import torch

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++")
# Without instructions of its own, and with the widest ones that this processor has.
BUILDS = ["baseline", *{"AVX512": ["avx512"], "AVX2": ["avx2"]}.get(torch.backends.cpu.get_cpu_capability(), [])]
# -O0 and -g1 halve what compiling takes; reports still name the line.
FLAGS = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-shared", "-fPIC"]
# Python leaks by design. Fresh memory is filled with NaN, which shows in the results wherever it is read.
OPTIONS = "detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=1000000000"


def runtime(name):
    """Return the path of one of the compiler's libraries; None where it has none of that name."""
    line = [COMPILER, f"-print-file-name={name}"]
    path = Path(subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip())
    return path if path.is_absolute() else None


def why_not():
    if sys.platform != "linux":
        return "needs LD_PRELOAD"
    if COMPILER is None:
        return "there is no g++"
    if runtime("libasan.so") is None:
        return "g++ has no libasan"
    return None


pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


def extensions():
    """Return what setup.py would build, by name of the instructions."""
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", given.update)
        runpy.run_path("setup.py")
    return {extension.name.rpartition("_cpu_")[2]: extension for extension in given["ext_modules"]}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Compile all builds, side by side."""
    folder = tmp_path_factory.mktemp("sanitized")
    compilers = {}
    for name in BUILDS:
        extension = extensions()[name]
        line = [COMPILER, *extension.extra_compile_args, *FLAGS, *extension.sources, "-o", folder / f"{name}.so"]
        compilers[name] = subprocess.Popen(line, cwd=ROOT)
    assert [compiler.wait() for compiler in compilers.values()] == [0] * len(BUILDS)
    return {name: folder / f"{name}.so" for name in BUILDS}


def drive(library, job):
    # libstdc++ too: the sanitizer looks it up before torch brings it along, and dies at the first C++ exception.
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        "ASAN_OPTIONS": OPTIONS,
    }
    line = [sys.executable, "-m", "tests.test_kernels.sanitizer_driver", library, job]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("build", BUILDS)
def test_no_report(libraries, build):
    run = drive(libraries[build], "all_is_well")
    assert run.returncode == 0, run.stderr
    assert run.stdout == "done\n"
    assert "runtime error" not in run.stderr
    assert "Sanitizer" not in run.stderr


@pytest.mark.parametrize(
    ("job", "report"),
    [
        ("a_short_tensor", r"AddressSanitizer: heap-buffer-overflow.*scan\.h"),
        ("a_size_beyond_all_numbers", r"scan(_backward\.cpp|\.h).*runtime error: signed integer overflow"),
        ("a_result_that_nobody_wrote", r"AssertionError: empty"),
    ],
)
def test_the_check_sees_errors(libraries, job, report):
    run = drive(libraries[BUILDS[-1]], job)
    assert run.returncode != 0
    assert re.search(report, run.stderr, re.DOTALL), run.stderr
