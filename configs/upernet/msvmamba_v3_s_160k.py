# UperNet with MSVMamba-Small of the NeurIPS version ("v3") on ADE20K, 160k iterations.
_base_ = './msvmamba_v3_t_160k.py'

model = dict(backbone=dict(arch='v3_small'))
