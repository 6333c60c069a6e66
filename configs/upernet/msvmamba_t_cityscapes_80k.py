# UperNet with MSVMamba-Tiny on Cityscapes, 80k iterations, crops of 512 x 1024: mmseg's recipe for ResNet (4 GPUs with
# 2 images each) with another backbone, and the optimizer of its recipe for Swin.
_base_ = [
    '../_base_/engine.py',
    'mmseg::upernet/upernet_r50_4xb2-80k_cityscapes-512x1024.py',
]
data_source = dict(
    CityscapesDataset='Cityscapes from https://www.cityscapes-dataset.com: unpack leftImg8bit_trainvaltest.zip and '
    'gtFine_trainvaltest.zip in data/cityscapes, then make the label images with mmseg, '
    'tools/dataset_converters/cityscapes.py data/cityscapes')
model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, type='mmmsv.MSVMamba', arch='tiny', drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=_base_.dense_decay))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=80000, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)

# Stock loops that say what is missing of the data, and where to get it.
train_cfg = dict(type='mmmsv.IterBasedTrainLoop')
val_cfg = dict(type='mmmsv.ValLoop')
test_cfg = dict(type='mmmsv.TestLoop')
# The stock hook, but that a killed run leaves whole checkpoints.
default_hooks = dict(checkpoint=dict(type='mmmsv.CheckpointHook'))
