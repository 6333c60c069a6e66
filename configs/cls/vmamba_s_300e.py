# VMamba-Small (s2l15) on ImageNet, 300 epochs.
_base_ = './vmamba_t_300e.py'

model = dict(backbone=dict(arch='v2_small_s2l15', drop_path_rate=0.3))
