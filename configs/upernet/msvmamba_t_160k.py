# UperNet with MSVMamba-Tiny on ADE20K, 160k iterations: mmseg's recipe for Swin-T with another backbone.
_base_ = [
    '../_base_/engine.py',
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
]
data_source = dict(
    ADE20KDataset='ADE20K from http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip: unpack it in '
    'data/ade')
model = dict(backbone=dict(_delete_=True, type='mmmsv.MSVMamba', arch='tiny', drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, custom_keys=_base_.dense_decay))
# mmseg's recipe does not say that its learning rate is for 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)

# Stock loops that say what is missing of the data, and where to get it.
train_cfg = dict(type='mmmsv.IterBasedTrainLoop')
val_cfg = dict(type='mmmsv.ValLoop')
test_cfg = dict(type='mmmsv.TestLoop')
# The stock hook, but that a killed run leaves whole checkpoints.
default_hooks = dict(checkpoint=dict(type='mmmsv.CheckpointHook'))
