# Mask R-CNN with VMamba-Base (s2l15) on COCO, 36 epochs with multi-scale crops.
_base_ = './vmamba_t_3x.py'

model = dict(backbone=dict(arch='v2_base_s2l15', drop_path_rate=0.6), neck=dict(in_channels=[128, 256, 512, 1024]))
