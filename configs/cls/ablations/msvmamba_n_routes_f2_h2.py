# Routes: (F, H) = (2, 2). Two on the full map, two on the half map.
# top-1: see Table 5 of the paper (not copied here)
_base_ = '../msvmamba_n_300e.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base='nano', full_routes=('row', 'col'), half_routes=('row_rev', 'col_rev'))))
