"""The registries of this package: children of MMEngine's, scope ``mmmsv``.

``type='mmmsv.MSVMamba'`` in any config of mmdet, mmseg or mmpretrain makes MMEngine import this module, so no
``custom_imports`` is needed.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import Registry

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="mmmsv", locations=["mmmsv.models"])
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope="mmmsv", locations=["mmmsv.engine"])
RUNNERS = Registry("runner", parent=MMENGINE_RUNNERS, scope="mmmsv", locations=["mmmsv.engine"])
