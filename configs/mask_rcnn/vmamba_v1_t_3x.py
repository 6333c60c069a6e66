# Mask R-CNN with VMamba-Tiny of the first version (arXiv, January 2024) on COCO, 36 epochs with multi-scale crops:
# 8 GPUs with 2 images each.
_base_ = './msvmamba_t_3x.py'

model = dict(backbone=dict(type='mmmsv.VMamba', arch='tiny'))
train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(base_batch_size=16)
