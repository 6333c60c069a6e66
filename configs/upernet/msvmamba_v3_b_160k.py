# UperNet with MSVMamba-Base of the NeurIPS version ("v3") on ADE20K, 160k iterations.
_base_ = './msvmamba_v3_t_160k.py'

model = dict(
    backbone=dict(arch='v3_base'),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
