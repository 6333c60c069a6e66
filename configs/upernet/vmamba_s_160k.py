# UperNet with VMamba-Small (s2l15) on ADE20K, 160k iterations.
_base_ = './vmamba_t_160k.py'

model = dict(backbone=dict(arch='v2_small_s2l15', drop_path_rate=0.3))
