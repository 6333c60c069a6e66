"""MSVMamba backbones for OpenMMLab, with a selective scan of their own."""

from .compat.mmengine_checkpoints import allow_mmengine_checkpoints

__version__ = "0.1.0"

# Here, so that `torch.load` reads MMEngine's checkpoints after any import of this package.
allow_mmengine_checkpoints()
