# Mask R-CNN with VMamba-Tiny (s1l8) on COCO, 36 epochs with multi-scale crops.
_base_ = './msvmamba_t_3x.py'

model = dict(backbone=dict(type='mmmsv.VMamba', arch='v2_tiny_s1l8'))
