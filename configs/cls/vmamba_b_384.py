# VMamba-Base (s2l15) on ImageNet, 30 epochs at 384 x 384.
_base_ = './vmamba_t_384.py'

model = dict(backbone=dict(arch='v2_base_s2l15'), head=dict(in_channels=1024))
