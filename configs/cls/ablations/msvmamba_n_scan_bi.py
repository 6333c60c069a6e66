# Scan patterns: Bi-Scan. A route and its reversal, on the full map.
# top-1: see the authors' slides (not copied here)
_base_ = '../msvmamba_n_300e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', full_routes=('row', 'row_rev'), half_routes=())))
