# Scan patterns: Uni-Scan. Four scans along one route.
# Figures: slides of MSVMamba.
_base_ = './msvmamba_n_100e.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, base='nano', depths=(1, 2, 4, 2), state_size=8, se=False, ffn='none',
            full_routes=('row', 'row', 'row', 'row'), half_routes=())))
