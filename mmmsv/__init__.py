"""MSVMamba backbones for OpenMMLab, with a selective scan of their own."""

__version__ = "0.1.0"
