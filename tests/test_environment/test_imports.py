"""The package itself: its version, and what its parts import."""

import importlib.metadata
import subprocess
import sys

import pytest

import mmmsv


def test_version():
    assert mmmsv.__version__ == importlib.metadata.version("mmmsv")


@pytest.mark.slow
def test_kernels_import_nothing_of_openmmlab(tmp_path):
    script = (
        "import sys\n"
        "import mmmsv.kernels\n"
        "print(callable(mmmsv.kernels.selective_scan), {'mmengine', 'mmcv', 'mmdet'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True", "set()"]
