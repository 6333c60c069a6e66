# What all configs share: a checkpoint that does not fit the model is an error, and a resumed run draws the random
# numbers that an unbroken one would have drawn.
custom_hooks = [
    dict(type='mmmsv.CheckpointFitHook', priority='VERY_LOW'),
    dict(type='mmmsv.SeedEpochHook'),
]

# Parts of parameter names, for paramwise_cfg: no weight decay on norms, decay rates and skip weights.
no_decay = {
    'norm': dict(decay_mult=0.0),
    'A_log': dict(decay_mult=0.0),
    '.skip': dict(decay_mult=0.0),
}
