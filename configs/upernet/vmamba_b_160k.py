# UperNet with VMamba-Base (s2l15) on ADE20K, 160k iterations.
_base_ = './vmamba_t_160k.py'

model = dict(
    backbone=dict(arch='v2_base_s2l15', drop_path_rate=0.6),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
