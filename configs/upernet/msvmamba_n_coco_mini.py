# UperNet with MSVMamba-Nano on the bundled photographs, 133 classes, in minutes on a CPU.
_base_ = [
    '../_base_/engine.py',
    'mmseg::_base_/models/upernet_swin.py',
    'mmseg::_base_/default_runtime.py',
    '../_base_/coco_mini_semantic.py',
]
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(_delete_=True, type='mmmsv.MSVMamba', arch='nano', drop_path_rate=0.0),
    decode_head=dict(in_channels=[48, 96, 192, 384], channels=96, num_classes=133, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=192, channels=96, num_classes=133, norm_cfg=norm_cfg))

train_cfg = dict(type='mmmsv.EpochBasedTrainLoop', max_epochs=60, val_interval=20)
val_cfg = dict(type='mmmsv.ValLoop')
test_cfg = dict(type='mmmsv.TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=_base_.dense_decay),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=30),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=5, end=60, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=3),
    checkpoint=dict(type='mmmsv.CheckpointHook', interval=10, max_keep_ckpts=2),
    visualization=dict(type='SegVisualizationHook'))
log_processor = dict(by_epoch=True)
# The fastest cuDNN algorithm may change from run to run, and the numbers with it.
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=0)
