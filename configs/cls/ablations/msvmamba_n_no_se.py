# Not published: no SE. No squeeze-and-excitation after the scan.
_base_ = './msvmamba_n_100e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', se=False)))
