# Not published: N = 16.
_base_ = './msvmamba_n_100e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', state_size=16)))
