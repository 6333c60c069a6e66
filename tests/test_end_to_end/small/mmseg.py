# ruff: noqa: C408 (written like all configs of MMEngine)
# The bundled UperNet, made small: 8 channels, crops of 64 pixels, 4 photographs, on which it is also evaluated.
_base_ = "../../../configs/upernet/msvmamba_n_coco_mini.py"

crop_size = (64, 64)
train_pipeline = [
    dict(type="RandomCrop", crop_size=crop_size) if step["type"] == "RandomCrop" else step
    for step in _base_.train_pipeline
]
train_dataloader = dict(batch_size=2, dataset=dict(indices=4, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(indices=4, data_prefix=_base_.train_dataloader.dataset.data_prefix))
test_dataloader = val_dataloader

arch = dict(_delete_=True, embed_dims=(8, 16, 32, 48), depths=(1, 1, 1, 1))
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(arch=arch, drop_path_rate=0.2),
    decode_head=dict(in_channels=[8, 16, 32, 48], channels=16),
    auxiliary_head=dict(in_channels=32, channels=16),
)

train_cfg = dict(max_epochs=4, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=5e-3))
param_scheduler = [dict(type="LinearLR", start_factor=0.5, by_epoch=False, end=6)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, max_keep_ckpts=-1))
