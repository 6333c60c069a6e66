# Settings: no SE. No squeeze-and-excitation after the scan.
# Not a published row.
_base_ = '../msvmamba_n_300e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', se=False)))
