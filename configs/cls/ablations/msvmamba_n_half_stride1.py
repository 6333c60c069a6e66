# Not published: stride 1. The "half" map has full resolution, too.
_base_ = './msvmamba_n_100e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', half_stride=1)))
