# UperNet with MSVMamba-Tiny of the NeurIPS version ("v3") on ADE20K, 160k iterations. The authors have published
# classifiers of this version alone: drop path is 0.3 in every size, as mmseg's recipes for Swin have it.
_base_ = './msvmamba_t_160k.py'

model = dict(backbone=dict(arch='v3_tiny', drop_path_rate=0.3))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.conv_downsample_decay))
