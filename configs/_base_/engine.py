# What all configs share. It comes first in their _base_, since bases are read in their order: in the maintained fork of
# OpenMMLab mmseg's distribution has another name than MMEngine looks for, so that `mmseg::` would find nothing; the name
# of the module is the same everywhere.
import mmengine.config.utils

mmengine.config.utils.MODULE2PACKAGE['mmseg'] = 'mmseg'

# Inferencers read the weights before they build the model. Those that a stock hook saved load once mmmsv was imported.
# This is what custom_imports does, a key that no other base could have beside this one.
mmengine.utils.import_modules_from_strings('mmmsv.registry')

# Heads or a checkpoint that do not fit the model are errors, and a resumed run draws the random numbers that an unbroken
# one would have drawn.
custom_hooks = [
    dict(type='mmmsv.ChannelFitHook'),
    dict(type='mmmsv.CheckpointFitHook', priority='HIGH'),
    dict(type='mmmsv.SeedEpochHook'),
]

# Parts of parameter names, for paramwise_cfg: no weight decay on norms, decay rates and skip weights.
no_decay = {
    'norm': dict(decay_mult=0.0),
    'A_log': dict(decay_mult=0.0),
    '.skip': dict(decay_mult=0.0),
}
