# Mask R-CNN with MSVMamba-Nano on COCO, 36 epochs with multi-scale crops.
_base_ = './msvmamba_t_3x.py'

model = dict(backbone=dict(arch='nano'), neck=dict(in_channels=[48, 96, 192, 384]))
