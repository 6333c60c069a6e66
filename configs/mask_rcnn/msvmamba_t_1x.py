# Mask R-CNN with MSVMamba-Tiny on COCO, 12 epochs: mmdet's recipe for Swin-T with another backbone.
_base_ = [
    '../_base_/engine.py',
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    '../_base_/coco.py',
]
model = dict(backbone=dict(_delete_=True, type='mmmsv.MSVMamba', arch='tiny', drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, custom_keys=_base_.dense_decay))
# The authors train MSVMamba on 8 GPUs with 4 images each, at the learning rate of Swin's 8 with 2.
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)

# Stock loops that say what is missing of the data, and where to get it.
train_cfg = dict(type='mmmsv.EpochBasedTrainLoop')
val_cfg = dict(type='mmmsv.ValLoop')
test_cfg = dict(type='mmmsv.TestLoop')
# The stock hook, but that a killed run leaves whole checkpoints.
default_hooks = dict(checkpoint=dict(type='mmmsv.CheckpointHook'))
