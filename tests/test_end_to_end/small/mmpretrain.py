# ruff: noqa: C408 (written like all configs of MMEngine)
# The bundled classifier, made small: 8 channels, 64 pixels, 2 photographs of each class, on which it is also evaluated.
_base_ = "../../../configs/cls/msvmamba_n_clothing_mini.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=64),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]
two_of_each = list(range(0, 400, 20))
train_dataloader = dict(batch_size=5, dataset=dict(indices=two_of_each, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(indices=two_of_each, data_prefix="train"))
test_dataloader = val_dataloader

arch = dict(_delete_=True, embed_dims=(8, 16, 32, 48), depths=(1, 1, 1, 1))
model = dict(backbone=dict(arch=arch, drop_path_rate=0.2), head=dict(in_channels=48))

train_cfg = dict(max_epochs=4, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [dict(type="LinearLR", start_factor=0.5, by_epoch=False, end=12)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, max_keep_ckpts=-1))
# As the recipe for ImageNet has it; the average of so few steps has to forget faster.
custom_hooks = [*_base_.custom_hooks, dict(type="EMAHook", momentum=0.2, priority="ABOVE_NORMAL")]
