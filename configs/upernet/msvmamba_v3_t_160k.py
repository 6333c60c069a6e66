# UperNet with MSVMamba-Tiny of the NeurIPS version ("v3") on ADE20K, 160k iterations.
_base_ = './msvmamba_t_160k.py'

model = dict(backbone=dict(arch='v3_tiny', drop_path_rate=0.3))
