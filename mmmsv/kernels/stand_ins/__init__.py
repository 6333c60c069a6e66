"""Modules that can be imported by the names of compiled ones that are not installed, and compute with this scan.

:func:`stand_in` turns them on, as does the environment variable ``MMMSV_STAND_IN=1``. ``packages/`` holds them, each
under the name that it is imported by; ``finder.py`` finds them there, after everything else has been asked.
"""

from .finder import append_finder, is_asked_for

__all__ = ["is_asked_for", "stand_in"]


def stand_in() -> None:
    """Make mamba-ssm, causal-conv1d and the compiled scans of VMamba importable where they are not installed.

    After this call, a name that Python finds nowhere else is taken from :mod:`mmmsv.kernels`:

    - ``selective_scan_cuda``: ``fwd`` and ``bwd`` as mamba-ssm and Vim call them;
    - ``selective_scan_cuda_oflex``, ``selective_scan_cuda_core``, ``selective_scan_cuda_nrow`` and
      ``selective_scan_cuda_ndstate``: as VMamba and its successors call them;
    - ``mamba_ssm``: :mod:`mmmsv.kernels.mamba`, as ``mamba_ssm.ops.selective_scan_interface`` and
      ``mamba_ssm.ops.triton.selective_state_update``, without blocks and models;
    - ``causal_conv1d`` and ``causal_conv1d_cuda``.

    A package that is installed always wins, each of these for itself: with mamba-ssm's Python alone, its own
    blocks call the ``selective_scan_cuda`` from here. The log says once for each what stands in.

    Call it before the modules that import these names; a second call changes nothing. Where a script cannot be edited,
    ``MMMSV_STAND_IN=1`` does the same at the start of Python, if mmmsv is installed from a wheel, else when
    ``mmmsv.kernels`` is imported.
    """
    append_finder()
