# VMamba-Small of the first version (arXiv, January 2024) on ImageNet, 300 epochs: the paper's recipe.
_base_ = './msvmamba_t_300e.py'

model = dict(backbone=dict(type='mmmsv.VMamba', arch='small', drop_path_rate=0.3))
