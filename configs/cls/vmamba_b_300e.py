# VMamba-Base (s2l15) on ImageNet, 300 epochs.
_base_ = './vmamba_t_300e.py'

model = dict(backbone=dict(arch='v2_base_s2l15', drop_path_rate=0.6), head=dict(in_channels=1024))
