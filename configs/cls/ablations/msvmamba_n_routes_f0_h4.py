# Routes: (F, H) = (0, 4). All on the half map.
# top-1: see Table 5 of the paper (not copied here)
_base_ = '../msvmamba_n_300e.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base='nano', full_routes=(), half_routes=('row', 'col', 'row_rev', 'col_rev'))))
