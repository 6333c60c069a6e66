# MSVMamba-Base of the NeurIPS version ("v3" in the authors' release) on ImageNet, 30 epochs at 384 x 384.
_base_ = './msvmamba_v3_t_384.py'

model = dict(backbone=dict(arch='v3_base'), head=dict(in_channels=1024))
