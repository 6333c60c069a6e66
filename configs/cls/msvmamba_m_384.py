# MSVMamba-Micro on ImageNet, 30 epochs at 384 x 384.
_base_ = './msvmamba_t_384.py'

model = dict(backbone=dict(arch='micro'), head=dict(in_channels=512))
