# Mask R-CNN with MSVMamba-Nano on the bundled photographs, in minutes on a CPU: the demo.
_base_ = [
    '../_base_/engine.py',
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/coco_mini_instance.py',
]
# 96 channels behind the backbone where stock Mask R-CNN has 256: 23 photographs with objects do not need more.
model = dict(
    backbone=dict(_delete_=True, type='mmmsv.MSVMamba', arch='nano', drop_path_rate=0.0),
    neck=dict(in_channels=[48, 96, 192, 384], out_channels=96),
    rpn_head=dict(in_channels=96, feat_channels=96),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=96),
        bbox_head=dict(in_channels=96, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=96),
        mask_head=dict(in_channels=96, conv_out_channels=96)),
    # A photograph holds about five objects: fewer proposals find them too, in half the time.
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)))

# It learns these photographs by heart, on purpose: `mim test` asks for the ones it trained on, and only the validation
# while training looks at the 8 held-out ones, on which 23 photographs cannot teach it much.
test_dataloader = dict(
    dataset=dict(ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017/')))
test_evaluator = dict(ann_file=_base_.data_root + 'annotations/instances_train2017.json')

train_cfg = dict(type='mmmsv.EpochBasedTrainLoop', max_epochs=30, val_interval=15)
val_cfg = dict(type='mmmsv.ValLoop')
test_cfg = dict(type='mmmsv.TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=_base_.dense_decay),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=36),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=30, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(interval=4),
    checkpoint=dict(type='mmmsv.CheckpointHook', interval=5, max_keep_ckpts=1))
randomness = dict(seed=0)
