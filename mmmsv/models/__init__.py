from .msvmamba import MSVMamba
from .vmamba import VMamba

__all__ = ["MSVMamba", "VMamba"]
