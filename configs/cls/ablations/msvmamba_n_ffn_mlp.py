# Not published: MLP. In place of the ConvFFN.
_base_ = './msvmamba_n_100e.py'

model = dict(backbone=dict(arch=dict(_delete_=True, base='nano', ffn='mlp')))
