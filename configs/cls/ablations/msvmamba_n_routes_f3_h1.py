# Routes: (F, H) = (3, 1). Three on the full map, one on the half map.
# top-1: see Table 5 of the paper (not copied here)
_base_ = '../msvmamba_n_300e.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base='nano', full_routes=('row', 'col', 'row_rev'), half_routes=('col_rev',))))
