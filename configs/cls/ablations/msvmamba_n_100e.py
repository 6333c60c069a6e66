# Components: + N = 1: MSVMamba-Nano. One block more.
# Figures: arXiv 2405.14174, Table 4; slides of MSVMamba.
# The paper's ablations are of 100 epochs; it names no other difference from the 300 of its Table 1.
_base_ = '../msvmamba_n_300e.py'

train_cfg = dict(max_epochs=100)
