"""Necks and heads that do not take the maps of the backbone are refused."""

import pytest

from mmmsv.engine.hooks.channel_fit import channel_faults

from .small_runs import small_classifier

MAPS = (96, 192, 384, 768)
FITTING = {
    "fpn": {"neck": {"in_channels": [96, 192, 384, 768]}, "rpn_head": {"in_channels": 256}},
    "yolo": {"neck": {"type": "mmdet.YOLOV3Neck", "in_channels": [768, 384, 192, 96]}},
    "two-necks": {"neck": [{"in_channels": [96, 192, 384, 768]}, {"in_channels": 256}]},
    "last": {"neck": {"in_channels": 768}},
    "pooled": {"neck": {"type": "GlobalAveragePooling"}, "head": {"in_channels": 768}},
    "none": {"neck": None, "head": {"type": "NoChannels"}},
    "neck": {"neck": {"type": "Concatenation"}, "head": {"in_channels": 1440}},
    "pyramid": {"neck": {"type": "SimpleFPN", "backbone_channel": 768, "in_channels": [192, 384, 768, 768]}},
    "unknown": {"decode_head": {"in_channels": 768, "in_index": None}, "auxiliary_head": {"in_channels": {"a": 96}}},
    "index": {"decode_head": {"in_channels": [96, 384], "in_index": [0, 2]}, "auxiliary_head": None},
    "cascade": {"decode_head": [{"in_channels": 768}, {"in_channels": 512}]},
    "mask2former": {"panoptic_head": {"in_channels": [96, 192, 384, 768]}},
}
FAULTY = {
    "fpn": ({"neck": {"in_channels": [96, 192, 384]}}, "model.neck.in_channels is [96, 192, 384], but should be [96, "),
    "reversed": (
        {"neck": {"type": "FPN", "in_channels": [768, 384, 192, 96]}},
        "model.neck.in_channels is [768, 384, 192, 96",
    ),
    "last": ({"neck": {"in_channels": 2048}}, "model.neck.in_channels is 2048, but should be 768"),
    "pooled": (
        {"neck": {"type": "mmpretrain.GeneralizedMeanPooling"}, "head": {"in_channels": 384}},
        "model.head.in_channels is 384, but should be 768",
    ),
    "index": (
        {"decode_head": {"in_channels": [384, 96], "in_index": [0, 2]}},
        "model.decode_head.in_channels is [384, 96], but should be [96, 384]",
    ),
    "beyond": (
        {"auxiliary_head": [{"in_channels": 768}, {"in_channels": 384, "in_index": 4}]},
        "model.auxiliary_head[1].in_index is 4, but there are 4",
    ),
}


@pytest.mark.parametrize("model", FITTING.values(), ids=FITTING)
def test_channels_that_fit(model):
    assert channel_faults(model, MAPS) == []


@pytest.mark.parametrize(("model", "message"), FAULTY.values(), ids=FAULTY)
def test_channels_that_do_not_fit(model, message):
    (fault,) = channel_faults(model, MAPS)
    assert fault.startswith(message)


def test_a_head_that_does_not_fit_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"model.head.in_channels is 768, but should be 16, since this MSVMamba gives"):
        small_classifier(tmp_path, **{"model.head.in_channels": 768}).train()
