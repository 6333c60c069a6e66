# VMamba-Tiny (s1l8) on ImageNet, 30 epochs at 384 x 384.
_base_ = './msvmamba_t_384.py'

model = dict(backbone=dict(type='mmmsv.VMamba', arch='v2_tiny_s1l8'))
