# Settings: no gate.
# Not a published row.
_base_ = '../msvmamba_n_300e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', gate=False)))
