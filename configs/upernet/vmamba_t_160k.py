# UperNet with VMamba-Tiny (s1l8) on ADE20K, 160k iterations.
_base_ = './msvmamba_t_160k.py'

model = dict(backbone=dict(type='mmmsv.VMamba', arch='v2_tiny_s1l8'))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.conv_downsample_decay))
