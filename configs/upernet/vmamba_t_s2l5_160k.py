# UperNet with VMamba-Tiny (s2l5) on ADE20K, 160k iterations. Drop path is that of VMamba-Tiny (s1l8); the authors' was
# not at hand.
_base_ = './vmamba_t_160k.py'

model = dict(backbone=dict(arch='v2_tiny_s2l5'))
