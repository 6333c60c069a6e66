# VMamba-Base of the first version (arXiv, January 2024) on ImageNet, 300 epochs: the paper's recipe. Drop path is 0.6,
# as in the authors' first config and in the name of the published file; their later config has 0.5.
_base_ = './vmamba_v1_s_300e.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.6), head=dict(in_channels=1024))
