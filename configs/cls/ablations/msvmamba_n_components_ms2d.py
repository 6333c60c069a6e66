# Components: + MS2D. N = 16, no squeeze-and-excitation, no FFN.
# top-1: see Table 4 of the paper (not copied here)
_base_ = '../msvmamba_n_300e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', state_size=16, se=False, ffn='none')))
