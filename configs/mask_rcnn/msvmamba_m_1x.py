# Mask R-CNN with MSVMamba-Micro on COCO, 12 epochs.
_base_ = './msvmamba_t_1x.py'

model = dict(backbone=dict(arch='micro'), neck=dict(in_channels=[64, 128, 256, 512]))
