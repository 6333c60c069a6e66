# UperNet with MSVMamba-Micro on ADE20K, 160k iterations.
_base_ = './msvmamba_t_160k.py'

model = dict(
    backbone=dict(arch='micro', drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
