# Mask R-CNN with MSVMamba-Nano on COCO, 12 epochs.
_base_ = './msvmamba_t_1x.py'

model = dict(backbone=dict(arch='nano'), neck=dict(in_channels=[48, 96, 192, 384]))
