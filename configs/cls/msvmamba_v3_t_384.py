# MSVMamba-Tiny of the NeurIPS version ("v3" in the authors' release) on ImageNet, 30 epochs at 384 x 384.
_base_ = './msvmamba_t_384.py'

model = dict(backbone=dict(arch='v3_tiny'))
