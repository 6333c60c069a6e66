# Scan patterns: Uni-Scan. One route, on the full map.
# top-1: see the authors' slides (not copied here)
_base_ = '../msvmamba_n_300e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', full_routes=('row',), half_routes=())))
