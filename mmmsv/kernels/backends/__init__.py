"""The backends of this package, each registered by the folder of its name."""

from . import cpu, reference, torch, triton  # noqa: F401
