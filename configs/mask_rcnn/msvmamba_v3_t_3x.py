# Mask R-CNN with MSVMamba-Tiny of the NeurIPS version ("v3") on COCO, 36 epochs with multi-scale crops. The authors
# have published classifiers of this version alone: the recipe is that of MSVMamba-Tiny.
_base_ = './msvmamba_t_3x.py'

model = dict(backbone=dict(arch='v3_tiny'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.conv_downsample_decay))
