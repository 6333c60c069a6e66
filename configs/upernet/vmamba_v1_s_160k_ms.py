# vmamba_v1_s_160k.py, tested at six scales and flipped.
_base_ = './vmamba_v1_s_160k.py'

test_dataloader = dict(dataset=dict(pipeline=_base_.tta_pipeline))
custom_hooks = _base_.custom_hooks + [dict(type='PrepareTTAHook', tta_cfg=_base_.tta_model)]
