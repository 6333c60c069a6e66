# MSVMamba-Tiny on ImageNet, 300 epochs: mmpretrain's recipe for Swin (batch 16 x 64) with another backbone, and what
# the authors' recipe has besides. They train in mixed precision: add --amp, which MMEngine refuses without a GPU.
_base_ = [
    '../_base_/engine.py',
    'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
    '../_base_/imagenet.py',
]
model = dict(
    backbone=dict(_delete_=True, type='mmmsv.MSVMamba', arch='tiny', out_indices=(3, ), drop_path_rate=0.2),
    head=dict(init_cfg=dict(_delete_=True, type='TruncNormal', layer='Linear', std=0.02)),
    # The backbone initialises itself; Swin's rule for all linear layers is not that of its ConvFFN.
    init_cfg=None)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_delete_=True, **_base_.classifier_decay)))
# The cosine goes down with each iteration, in the place of each epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, convert_to_iter_based=True),
]
# An epoch is 1251 iterations: the smaller batch at its end is dropped.
train_dataloader = dict(drop_last=True)
# The moving average of the weights is what the authors evaluate.
custom_hooks = _base_.custom_hooks + [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]

# Stock loops that say what is missing of the data, and where to get it.
train_cfg = dict(_delete_=True, type='mmmsv.EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='mmmsv.ValLoop')
test_cfg = dict(type='mmmsv.TestLoop')
# The stock hook, but that a killed run leaves whole checkpoints.
default_hooks = dict(checkpoint=dict(type='mmmsv.CheckpointHook'))
