# MSVMamba-Nano on ImageNet, 300 epochs.
_base_ = './msvmamba_t_300e.py'

model = dict(backbone=dict(arch='nano'), head=dict(in_channels=384))
