"""Runs the Triton kernels as compiled for a GPU, on a machine without one: values, bounds and races are as there.

README.md of the tests says what that tells and what it does not.
"""

import os

# Whether the tests of the kernels run in the simulator; read before Triton is imported.
SIMULATED = os.environ.get("MMMSV_SIMULATE") == "1"


class SimulationError(RuntimeError):
    """A kernel does what it must not do, on a GPU neither."""
