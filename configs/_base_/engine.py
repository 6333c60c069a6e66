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

# Parts of parameter names, for paramwise_cfg: what decays is what decays in the authors' recipes. Those of detectors and
# segmentors spare what has `norm` in its name. In the authors' code the norms of the stem have no such names, so they
# decay; and so do those of the convolutions between stages, which v3 and VMamba of 2024 have. (In VMamba's code of
# January 2024 it was the other way round, going by the names in its files: `patch_embed.norm` was spared, `ln_1` of the
# blocks decayed. The configs of that version follow the later names.)
dense_decay = {
    'norm': dict(decay_mult=0.0),
    'stem.': dict(decay_mult=1.0),
}
conv_downsample_decay = {'downsample.norm': dict(decay_mult=1.0)}
# Those of classifiers spare norms, biases and whatever has one axis, as the authors' skip weights have.
classifier_decay = {'.skip': dict(decay_mult=0.0)}
