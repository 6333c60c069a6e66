# Cascade Mask R-CNN with MSVMamba-Tiny on COCO, 36 epochs with multi-scale crops: mmdet's recipe for ConvNeXt-T with
# another backbone, and the optimizer of its recipe for Swin.
_base_ = [
    '../_base_/engine.py',
    'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py',
    '../_base_/coco.py',
]
# The recipe imports mmpretrain, for the sake of ConvNeXt.
custom_imports = None
model = dict(backbone=dict(_delete_=True, type='mmmsv.MSVMamba', arch='tiny', drop_path_rate=0.2))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=_base_.dense_decay))

# Stock loops that say what is missing of the data, and where to get it.
train_cfg = dict(type='mmmsv.EpochBasedTrainLoop')
val_cfg = dict(type='mmmsv.ValLoop')
test_cfg = dict(type='mmmsv.TestLoop')
# The stock hook, but that a killed run leaves whole checkpoints.
default_hooks = dict(checkpoint=dict(type='mmmsv.CheckpointHook'))
