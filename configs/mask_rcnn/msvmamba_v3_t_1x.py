# Mask R-CNN with MSVMamba-Tiny of the NeurIPS version ("v3") on COCO, 12 epochs.
_base_ = './msvmamba_t_1x.py'

model = dict(backbone=dict(arch='v3_tiny'))
