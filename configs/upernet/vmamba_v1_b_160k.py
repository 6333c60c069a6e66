# UperNet with VMamba-Base of the first version (arXiv, January 2024) on ADE20K, 160k iterations.
_base_ = './vmamba_v1_t_160k.py'

model = dict(
    backbone=dict(arch='base'),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
