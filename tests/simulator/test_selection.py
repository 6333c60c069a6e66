"""Some of the tests of the Triton kernels in the simulator; `make simulate` runs them all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmmsv.kernels.backends.triton.scan import why_no_triton

from . import SIMULATED

ROOT = Path(__file__).parents[2]
KERNELS = "tests/test_kernels"
# Something of each op, which costs little: most of the time Triton compiles.
SELECTION = (
    "tests/simulator/test_driver.py",
    f"{KERNELS}/test_triton.py::test_one_span_and_many[row_rev+col+col_rev,carry-many=True]",
    f"{KERNELS}/test_backends.py::test_small_maps[triton-four_sets-5x3-state=2-bfloat16]",
    f"{KERNELS}/test_fused.py::test_depthwise_conv[kernel=3-stride=1-gelu-residual=True-bias=True-triton-2x5x9x33]",
    f"{KERNELS}/test_fused.py::test_weights_are_read_where_they_lie_and_left_as_they_are[triton]",
    f"{KERNELS}/test_fused.py::test_layer_norm[triton-2x5x9x33]",
    f"{KERNELS}/test_fused.py::test_gate[z-triton-2x5x9x33]",
    f"{KERNELS}/test_fused.py::test_merge_scales[norm_first=True-routes=3-stride=2-triton-2x5x9x33]",
)


@pytest.mark.slow
@pytest.mark.skipif(SIMULATED, reason="the tests that it starts run here")
@pytest.mark.skipif(why_no_triton() is not None, reason=str(why_no_triton()))
def test_kernels_in_the_simulator():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    environment |= {"MMMSV_SIMULATE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SELECTION]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
