# Routes: (F, H) = (4, 0). All on the full map: SS2D.
# Figures: arXiv 2405.14174, Table 5.
_base_ = './msvmamba_n_100e.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, base='nano', depths=(2, 2, 6, 2), state_size=8, se=False, ffn='none',
            full_routes=('row', 'col', 'row_rev', 'col_rev'), half_routes=())))
