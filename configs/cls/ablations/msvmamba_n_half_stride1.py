# Settings: stride 1. The "half" map has full resolution, too.
# Not a published row.
_base_ = '../msvmamba_n_300e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', half_stride=1)))
