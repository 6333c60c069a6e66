# Mask R-CNN with VMamba-Tiny (s1l8) on COCO, 12 epochs.
_base_ = './msvmamba_t_1x.py'

model = dict(backbone=dict(type='mmmsv.VMamba', arch='v2_tiny_s1l8'))
