"""Networks of transformers and mambapy compute with stand-ins what they compute without, and so do their gradients.

Transformers 5 breaks mmdet, so it is in no environment of this suite. In one of its own, with mmmsv's kernels:

    pip install transformers mambapy pytest numpy
    python -m pytest tests/test_kernels/test_other_packages.py
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict[str, dict[str, list[Tensor]]], ...]:
    """By package and mode, as the packages are, and with stand-ins."""
    if importlib.util.find_spec("mamba_ssm"):
        pytest.skip("mamba-ssm is installed, so nothing stands in for it")
    results = []
    for options in ([], ["--stand-in"]):
        file = tmp_path_factory.mktemp("found") / "results.pt"
        line = [sys.executable, "-m", "tests.test_kernels.other_packages", str(file), *options]
        run = subprocess.run(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert ("mamba_ssm is not installed: mmmsv.kernels.mamba stands in for it" in run.stderr) == bool(options)
        if options:
            assert "falling back" not in run.stderr  # as transformers says of each function that it lacks
        results.append(torch.load(file))
    return tuple(results)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Mamba", "FalconMamba", "Jamba", "mambapy"])
def test_same_numbers(name, request):
    package = name if name == "mambapy" else "transformers"
    pytest.importorskip(package, reason=f"{package} is not installed")
    as_it_is, with_stand_ins = (each[name] for each in request.getfixturevalue("found"))
    assert as_it_is.keys() == with_stand_ins.keys()
    for mode, expected in as_it_is.items():
        for got, wanted in zip(with_stand_ins[mode], expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()), msg=mode)
