# Mask R-CNN with MSVMamba-Tiny of the NeurIPS version ("v3") on COCO, 12 epochs. The authors have
# published classifiers of this version alone: the recipe is that of MSVMamba-Tiny.
_base_ = './msvmamba_t_1x.py'

model = dict(backbone=dict(arch='v3_tiny'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.conv_downsample_decay))
