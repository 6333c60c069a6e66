# VMamba-Tiny (s1l8) on ImageNet, 300 epochs.
_base_ = './msvmamba_t_300e.py'

model = dict(backbone=dict(type='mmmsv.VMamba', arch='v2_tiny_s1l8'))
