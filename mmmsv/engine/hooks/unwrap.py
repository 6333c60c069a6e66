"""Take a model out of its wrappers."""

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model that a wrapper for several processes, or for test-time augmentation, holds."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.get_submodule("module")
    return model
