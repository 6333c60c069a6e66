# MSVMamba-Base of the NeurIPS version ("v3" in the authors' release) on ImageNet, 300 epochs. It alone has a lower
# learning rate: 6e-4, from 1e-6 in the warm-up to 6e-6 at the end.
_base_ = './msvmamba_t_300e.py'

model = dict(backbone=dict(arch='v3_base', drop_path_rate=0.5), head=dict(in_channels=1024))
optim_wrapper = dict(optimizer=dict(lr=6e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 600, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=6e-6, by_epoch=True, begin=20, convert_to_iter_based=True),
]
