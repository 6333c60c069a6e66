# MSVMamba-Base of the NeurIPS version ("v3" in the authors' release) on ImageNet, 300 epochs.
_base_ = './msvmamba_t_300e.py'

model = dict(backbone=dict(arch='v3_base', drop_path_rate=0.5), head=dict(in_channels=1024))
