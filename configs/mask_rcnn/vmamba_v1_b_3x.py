# Mask R-CNN with VMamba-Base of the first version (arXiv, January 2024) on COCO, 36 epochs with multi-scale crops.
# The authors train it on 16 GPUs with 1 image each. The authors report no result of this one.
_base_ = './vmamba_v1_t_3x.py'

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=[128, 256, 512, 1024]))
