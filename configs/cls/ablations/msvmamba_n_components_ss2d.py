# Components: VMamba. At Nano's size: SS2D with four routes, N = 16, no squeeze-and-excitation, no FFN.
# top-1: see Table 4 of the paper (not copied here)
_base_ = '../msvmamba_n_300e.py'

model = dict(
    backbone=dict(
        type='mmmsv.VMamba', arch=dict(_delete_=True, base='tiny', embed_dims=(48, 96, 192, 384), depths=(1, 2, 5, 2))))
