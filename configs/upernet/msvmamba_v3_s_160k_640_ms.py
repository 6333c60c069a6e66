# msvmamba_v3_s_160k_640.py, tested at six scales and flipped.
_base_ = './msvmamba_v3_s_160k_640.py'

test_dataloader = dict(dataset=dict(pipeline=_base_.tta_pipeline))
custom_hooks = _base_.custom_hooks + [dict(type='PrepareTTAHook', tta_cfg=_base_.tta_model)]
