# MSVMamba-Tiny on ImageNet, 30 epochs at 384 x 384 from weights that were trained at 224 x 224 (give them: README.md):
# mmpretrain's data settings for Swin at 384. It has no schedule for that; this one is a choice made here.
_base_ = [
    '../_base_/engine.py',
    'mmpretrain::swin_transformer/swin-base_16xb64_in1k-384px.py',
    '../_base_/imagenet.py',
]
model = dict(
    backbone=dict(_delete_=True, type='mmmsv.MSVMamba', arch='tiny', out_indices=(3, ), drop_path_rate=0.1),
    head=dict(in_channels=768))
# Batch 16 x 64. Next to nothing decays, and what never does is as in training at 224.
optim_wrapper = dict(
    optimizer=dict(lr=1e-5, weight_decay=1e-8),
    paramwise_cfg=dict(custom_keys=dict(_delete_=True, **_base_.classifier_decay)))
# The learning rate is constant.
param_scheduler = []

# Stock loops that say what is missing of the data, and where to get it.
train_cfg = dict(_delete_=True, type='mmmsv.EpochBasedTrainLoop', max_epochs=30, val_interval=1)
val_cfg = dict(type='mmmsv.ValLoop')
test_cfg = dict(type='mmmsv.TestLoop')
# The stock hook, but that a killed run leaves whole checkpoints.
default_hooks = dict(checkpoint=dict(type='mmmsv.CheckpointHook'))
