# UperNet with MSVMamba-Nano on ADE20K, 160k iterations.
_base_ = './msvmamba_t_160k.py'

model = dict(
    backbone=dict(arch='nano', drop_path_rate=0.3),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192))
