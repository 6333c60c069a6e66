# UperNet with VMamba-Small of the first version (arXiv, January 2024) on ADE20K, 160k iterations.
_base_ = './vmamba_v1_t_160k.py'

model = dict(backbone=dict(arch='small'))
