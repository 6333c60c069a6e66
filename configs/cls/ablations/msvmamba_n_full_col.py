# Directions: col on the full map. The others on the half map.
# Not a published row.
_base_ = '../msvmamba_n_300e.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base='nano', full_routes=('col',), half_routes=('row', 'row_rev', 'col_rev'))))
