# Components: + MS2D. Routes: (F, H) = (1, 3). Scan patterns: MS2D. Three blocks more.
# Figures: arXiv 2405.14174, Table 4; arXiv 2405.14174, Table 5; slides of MSVMamba.
_base_ = './msvmamba_n_100e.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, base='nano', depths=(2, 2, 6, 2), state_size=8, se=False, ffn='none')))
