# Routes: (F, H) = (0, 4). All on the half map: SS2D with a stride of 2.
# Figures: arXiv 2405.14174, Table 5.
_base_ = './msvmamba_n_100e.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, base='nano', depths=(2, 2, 6, 2), state_size=8, se=False, ffn='none', full_routes=(),
            half_routes=('row', 'col', 'row_rev', 'col_rev'), half_kernel=3)))
