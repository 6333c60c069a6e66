# ruff: noqa: C408 (written like all configs of MMEngine)
# The small Mask R-CNN so that two processes with a batch of 2 do the same as one with a batch of 4, but for rounding.
# A loss is the mean over what it counts (anchors, proposals, masks), and each process divides by its own count: so all
# photographs here have one size and two objects, all anchors and proposals are taken, and only the objects themselves
# are positive proposals, of which there are always 100.
_base_ = "./mmdet.py"
custom_imports = dict(imports=["processes"])
custom_hooks = [*_base_.custom_hooks, dict(type="LossRecorder")]
# Processors are told by device_ids=None.
model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)

same_size = dict(type="Resize", scale=(160, 160), keep_ratio=False)
train_pipeline = [same_size if step["type"] == "Resize" else step for step in _base_.train_pipeline]
two_objects = [0, 1, 2, 7, 8, 9, 10, 11]
train_dataloader = dict(batch_size=2, batch_sampler=None, dataset=dict(indices=two_objects, pipeline=train_pipeline))
model = dict(
    backbone=dict(drop_path_rate=0.0),
    train_cfg=dict(
        rpn=dict(assigner=dict(neg_iou_thr=0.7), sampler=dict(num=10_000)),
        rpn_proposal=dict(nms=dict(iou_threshold=1.0), nms_pre=100, max_per_img=100),
        rcnn=dict(
            assigner=dict(pos_iou_thr=1.0, neg_iou_thr=1.0, min_pos_iou=1.0),
            sampler=dict(num=1000),
        ),
    ),
)

train_cfg = dict(max_epochs=4)
val_cfg = None
val_dataloader = None
val_evaluator = None
default_hooks = dict(checkpoint=dict(interval=2))
