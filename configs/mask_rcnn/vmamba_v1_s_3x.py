# Mask R-CNN with VMamba-Small of the first version (arXiv, January 2024) on COCO, 36 epochs with multi-scale crops.
# Drop path is 0.2 in every size, which the paper calls an oversight.
_base_ = './vmamba_v1_t_3x.py'

model = dict(backbone=dict(arch='small'))
