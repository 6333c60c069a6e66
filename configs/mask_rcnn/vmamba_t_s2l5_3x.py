# Mask R-CNN with VMamba-Tiny (s2l5) on COCO, 36 epochs with multi-scale crops. Drop path is that of VMamba-Tiny (s1l8);
# the authors' was not at hand.
_base_ = './vmamba_t_3x.py'

model = dict(backbone=dict(arch='v2_tiny_s2l5'))
