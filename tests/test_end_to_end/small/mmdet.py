# ruff: noqa: C408 (written like all configs of MMEngine)
# The bundled Mask R-CNN, made small: 8 channels, 160 pixels, 4 photographs, on which it is also evaluated.
_base_ = "../../../configs/mask_rcnn/msvmamba_n_coco_mini.py"

small = dict(type="Resize", scale=(160, 160), keep_ratio=True)
train_pipeline = [small if step["type"] == "Resize" else step for step in _base_.train_pipeline]
test_pipeline = [small if step["type"] == "Resize" else step for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(indices=4, pipeline=train_pipeline))
test_dataloader = dict(dataset=dict(indices=4, pipeline=test_pipeline))
test_evaluator = dict(metric=["bbox", "segm", "proposal"])
val_dataloader = dict(
    dataset=dict(
        indices=4,
        ann_file=_base_.test_dataloader.dataset.ann_file,
        data_prefix=_base_.test_dataloader.dataset.data_prefix,
        pipeline=test_pipeline,
    )
)
val_evaluator = dict(ann_file=_base_.test_evaluator.ann_file, metric=["bbox", "segm", "proposal"])

arch = dict(_delete_=True, embed_dims=(8, 16, 32, 48), depths=(1, 1, 1, 1))
model = dict(
    backbone=dict(arch=arch, drop_path_rate=0.2),
    neck=dict(in_channels=[8, 16, 32, 48], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1),
    ),
    # After so few steps no score is high; without any box there would be nothing to compare.
    test_cfg=dict(rcnn=dict(score_thr=0.0)),
)

train_cfg = dict(max_epochs=8, val_interval=8)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [dict(type="LinearLR", start_factor=0.5, by_epoch=False, end=12)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=4, max_keep_ckpts=-1))
