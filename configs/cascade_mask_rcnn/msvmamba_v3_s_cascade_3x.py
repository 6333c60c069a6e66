# Cascade Mask R-CNN with MSVMamba-Small of the NeurIPS version ("v3") on COCO, 36 epochs with multi-scale crops.
_base_ = './msvmamba_t_cascade_3x.py'

model = dict(backbone=dict(arch='v3_small'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.conv_downsample_decay))
