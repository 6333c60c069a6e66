# Mask R-CNN with VMamba-Tiny (s1l8) on COCO, 12 epochs.
_base_ = './vmamba_v1_t_1x.py'

model = dict(backbone=dict(arch='v2_tiny_s1l8'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.conv_downsample_decay))
