# Not published: col_rev on the full map. The others on the half map.
_base_ = './msvmamba_n_100e.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base='nano', full_routes=('col_rev',), half_routes=('row', 'col', 'row_rev'))))
