"""The registries of this package: children of MMEngine's, scope ``mmmsv``.

``type='mmmsv.MSVMamba'`` in any config of mmdet, mmseg or mmpretrain makes MMEngine import this module, so no
``custom_imports`` is needed.
"""

from mmengine import registry

from .checkpoint_loaders import register_loaders


def _child(parent: registry.Registry, location: str) -> registry.Registry:
    return registry.Registry(parent.name, parent=parent, scope="mmmsv", locations=[location])


MODELS = _child(registry.MODELS, "mmmsv.models")
WEIGHT_INITIALIZERS = _child(registry.WEIGHT_INITIALIZERS, "mmmsv.checkpoints")
HOOKS = _child(registry.HOOKS, "mmmsv.engine")
LOOPS = _child(registry.LOOPS, "mmmsv.engine")
OPTIM_WRAPPER_CONSTRUCTORS = _child(registry.OPTIM_WRAPPER_CONSTRUCTORS, "mmmsv.engine")

# Here, because whoever names a type of this package passes here before a checkpoint is read.
register_loaders()
