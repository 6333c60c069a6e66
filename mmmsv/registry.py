"""The registries of this package: children of MMEngine's, scope ``mmmsv``.

``type='mmmsv.MSVMamba'`` in any config of mmdet, mmseg or mmpretrain makes MMEngine import this module, so no
``custom_imports`` is needed.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

from .compat.mmengine_checkpoints import allow_mmengine_checkpoints

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="mmmsv", locations=["mmmsv.models"])
WEIGHT_INITIALIZERS = Registry(
    "weight initializer", parent=MMENGINE_WEIGHT_INITIALIZERS, scope="mmmsv", locations=["mmmsv.checkpoints"]
)
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope="mmmsv", locations=["mmmsv.engine"])
LOOPS = Registry("loop", parent=MMENGINE_LOOPS, scope="mmmsv", locations=["mmmsv.engine"])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope="mmmsv",
    locations=["mmmsv.engine"],
)

# Here, because whoever names a type of this package passes here before a checkpoint is read.
allow_mmengine_checkpoints()
