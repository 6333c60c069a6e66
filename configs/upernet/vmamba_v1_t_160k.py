# UperNet with VMamba-Tiny of the first version (arXiv, January 2024) on ADE20K, 160k iterations. Drop path is 0.2 in
# every size, as in the authors' detectors; what their segmentors have was not at hand.
_base_ = './msvmamba_t_160k.py'

model = dict(backbone=dict(type='mmmsv.VMamba', arch='tiny'))
