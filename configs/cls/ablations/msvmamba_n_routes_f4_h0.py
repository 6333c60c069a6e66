# Routes: (F, H) = (4, 0). All on the full map: SS2D. Scan patterns: CrossScan.
# top-1: see Table 5 of the paper (not copied here)
_base_ = '../msvmamba_n_300e.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base='nano', full_routes=('row', 'col', 'row_rev', 'col_rev'), half_routes=())))
