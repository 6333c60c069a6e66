# Not published: MS2D, MS2D, SS2D, SS2D. One for each stage.
_base_ = './msvmamba_n_100e.py'

ss2d = dict(full_routes=('row', 'col', 'row_rev', 'col_rev'), half_routes=())
model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', stages=[dict(), dict(), ss2d, ss2d])))
