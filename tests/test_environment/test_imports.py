"""The package itself: its version, and what its parts import."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmmsv
from mmmsv.kernels import BACKENDS

ROOT = Path(__file__).parents[2]


def test_version():
    assert mmmsv.__version__ == importlib.metadata.version("mmmsv")


@pytest.mark.slow
def test_kernels_import_nothing_of_openmmlab(tmp_path):
    """And need no home folder, no locale, and no path of plain letters; they read MMMSV_STAND_IN."""
    place = tmp_path / "größerer Ordner"
    place.symlink_to(ROOT)
    script = (
        "import sys, torch, mmmsv.kernels\n"
        "print(mmmsv.kernels.__file__)\n"
        "print({'mmengine', 'mmcv', 'mmdet'} & set(sys.modules))\n"
        "print(mmmsv.kernels.BACKENDS['cpu'].why_not(torch.device('cpu')))\n"
        "print(type(sys.meta_path[-1]).__name__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(place), "HOME": "/nonexistent", "LC_ALL": "C", "PYTHONUTF8": "1"}
    environment["MMMSV_STAND_IN"] = "1"
    line = [sys.executable, "-c", script]
    run = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    reason = BACKENDS["cpu"].why_not(torch.device("cpu"))
    printed = [f"{place}/mmmsv/kernels/__init__.py", "set()", str(reason), "StandInFinder"]
    assert run.stdout.splitlines() == printed
