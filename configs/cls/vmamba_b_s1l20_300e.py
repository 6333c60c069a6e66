# VMamba-Base (s1l20) on ImageNet, 300 epochs. Drop path is that of VMamba-Base (s2l15); the authors' was not at hand.
_base_ = './vmamba_b_300e.py'

model = dict(backbone=dict(arch='v2_base_s1l20'))
