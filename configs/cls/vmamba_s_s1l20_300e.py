# VMamba-Small (s1l20) on ImageNet, 300 epochs. Drop path is that of VMamba-Small (s2l15); the authors' was not at hand.
_base_ = './vmamba_s_300e.py'

model = dict(backbone=dict(arch='v2_small_s1l20'))
