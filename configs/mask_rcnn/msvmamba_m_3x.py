# Mask R-CNN with MSVMamba-Micro on COCO, 36 epochs with multi-scale crops.
_base_ = './msvmamba_t_3x.py'

model = dict(backbone=dict(arch='micro'), neck=dict(in_channels=[64, 128, 256, 512]))
