# Routes: (F, H) = (2, 2). Two on the full map, two on the half map.
# Figures: arXiv 2405.14174, Table 5.
_base_ = './msvmamba_n_100e.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, base='nano', depths=(2, 2, 6, 2), state_size=8, se=False, ffn='none',
            full_routes=('row', 'col'), half_routes=('row_rev', 'col_rev'))))
