# Components: + SE. No FFN yet.
# Figures: arXiv 2405.14174, Table 4; slides of MSVMamba.
_base_ = './msvmamba_n_100e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', depths=(2, 2, 6, 2), state_size=8, ffn='none')))
