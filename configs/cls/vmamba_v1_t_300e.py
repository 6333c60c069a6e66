# VMamba-Tiny of the first version (arXiv, January 2024) on ImageNet, 300 epochs: the paper's recipe, 1024 images a batch
# and a learning rate of 1e-3; the authors' first config has 8 x 64 images. Drop path is 0.1, as the name of the
# published file says; the authors' config has 0.2. They kept no moving average of Tiny.
_base_ = './msvmamba_t_300e.py'

model = dict(backbone=dict(type='mmmsv.VMamba', arch='tiny', drop_path_rate=0.1))
custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'EMAHook']
