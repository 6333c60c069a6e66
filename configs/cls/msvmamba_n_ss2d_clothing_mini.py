# Nano with SS2D in the place of MS2D, all else equal, on the bundled photographs of clothes: docs/gallery compares them.
_base_ = 'msvmamba_n_clothing_mini.py'
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base='nano', full_routes=('row', 'col', 'row_rev', 'col_rev'), half_routes=())))
