# Not published: stride 4. The "half" map has a quarter of the resolution.
_base_ = './msvmamba_n_100e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', half_stride=4)))
