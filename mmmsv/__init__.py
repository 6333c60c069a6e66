"""MSVMamba and VMamba backbones for OpenMMLab, with a selective scan of their own."""

import importlib.util

__version__ = "0.1.0"

# mmmsv.kernels works without MMEngine; with it, its checkpoints must load as soon as this package is named in a config.
if importlib.util.find_spec("mmengine") is not None:
    from .compat import allow_mmengine_checkpoints

    allow_mmengine_checkpoints()
