# MSVMamba-Nano on the bundled photographs of clothes, 10 classes, in minutes on a CPU.
_base_ = [
    '../_base_/engine.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/clothing_mini.py',
]
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmmsv.MSVMamba', arch='nano', out_indices=(3, ), drop_path_rate=0.1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        in_channels=384,
        num_classes=10,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5)))

train_cfg = dict(type='mmmsv.EpochBasedTrainLoop', max_epochs=20, val_interval=5)
val_cfg = dict(type='mmmsv.ValLoop')
test_cfg = dict(type='mmmsv.TestLoop')
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0,
        custom_keys=_base_.classifier_decay),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=2, end=20),
]
default_hooks = dict(
    logger=dict(interval=5),
    checkpoint=dict(type='mmmsv.CheckpointHook', interval=5, max_keep_ckpts=2))
randomness = dict(seed=0)
