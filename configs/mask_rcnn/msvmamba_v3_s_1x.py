# Mask R-CNN with MSVMamba-Small of the NeurIPS version ("v3") on COCO, 12 epochs.
_base_ = './msvmamba_v3_t_1x.py'

model = dict(backbone=dict(arch='v3_small'))
