"""What a model launches and moves on a GPU: traffic.py, in a process whose kernels are no interpreter's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmmsv.kernels.backends.triton.scan import why_no_triton

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(why_no_triton() is not None, reason=str(why_no_triton()))
def test_traffic():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "traffic.py")]
    result = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "7 passed" in result.stdout
