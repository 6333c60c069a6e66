# Mask R-CNN with MSVMamba-Tiny of the NeurIPS version ("v3") on COCO, 36 epochs with multi-scale crops.
_base_ = './msvmamba_t_3x.py'

model = dict(backbone=dict(arch='v3_tiny'))
