# Mask R-CNN with VMamba-Small (s2l15) on COCO, 36 epochs with multi-scale crops.
_base_ = './vmamba_t_3x.py'

model = dict(backbone=dict(arch='v2_small_s2l15', drop_path_rate=0.3))
