"""Stock configs of mmdet, mmseg and mmpretrain with this backbone, as docs/use_in_your_config.md writes them."""

import re

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.runner import save_checkpoint
from torch import nn

from mmmsv.engine.hooks.channel_fit import channel_faults
from mmmsv.models import MSVMamba
from tests.test_models.gradients import without_gradient

from .stock import STOCK, batch, build, small_config, stock

# Of mmdet, mmseg and mmpretrain, what the page has to have.
WANTED = (
    *("faster-rcnn", "cascade-rcnn", "retinanet", "fcos", "atss", "mask2former"),
    *("upernet", "fpn", "segformer", "fcn", "pspnet", "deeplabv3plus", "segmenter"),
    *("resnet50", "hrnet-w18"),
)
PREDICTED = {
    "mmdet": lambda sample: sample.pred_instances.scores,
    "mmseg": lambda sample: sample.seg_logits.data,
    "mmpretrain": lambda sample: sample.pred_score,
}


def training_step(model, cfg):
    """Take one; return its loss. The gradients stay."""
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    data = model.data_preprocessor(batch(cfg.train_dataloader), training=True)
    loss, _ = model.parse_losses(model(**data, mode="loss"))
    optim_wrapper.backward(loss)
    optim_wrapper.step()
    return loss


@pytest.mark.parametrize("architecture", WANTED)
def test_the_page_has(architecture):
    assert any(f"/{architecture}_" in code for code in STOCK)


@pytest.mark.slow
@pytest.mark.parametrize("code", STOCK, ids=lambda code: re.search(r"/([\w.-]+)\.py", code)[1])
def test_trains_and_tests(code, tmp_path):
    torch.manual_seed(0)
    cfg = small_config(code, tmp_path)
    model = build(cfg).train()
    assert type(model.backbone) is MSVMamba
    assert channel_faults(cfg.model, model.backbone.out_channels) == []
    assert training_step(model, cfg).isfinite()
    trained = [(name, parameter) for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]
    assert without_gradient(trained) == []
    (sample,) = model.eval().test_step({k: v[:1] for k, v in batch(cfg.test_dataloader).items()})
    assert PREDICTED[cfg.default_scope](sample).isfinite().all()


def test_options_as_for_swin(tmp_path):
    """The options of a stock backbone, in a detector that starts from a classifier of mmpretrain."""
    torch.manual_seed(0)
    classifier = build(small_config(stock("resnet50"), tmp_path))
    save_checkpoint({"state_dict": classifier.state_dict()}, str(tmp_path / "classifier.pth"))
    cfg = small_config(stock("faster-rcnn"), tmp_path)
    cfg.model.backbone.update(
        frozen_stages=1,
        norm_eval=True,
        with_cp=True,
        init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "classifier.pth"), "prefix": "backbone."},
    )
    model = build(cfg).train()
    loaded = classifier.backbone.state_dict()
    assert all(torch.equal(model.backbone.state_dict()[name], value) for name, value in loaded.items())

    runs = []
    model.backbone.stages[1].blocks[0].ffn.register_forward_pre_hook(lambda module, inputs: runs.append(module))
    assert training_step(model, cfg).isfinite()
    assert len(runs) == 2  # with_cp: again in the backward pass
    assert not any(m.training for m in model.backbone.modules() if isinstance(m, nn.LayerNorm))
    frozen = ("stem.", "stages.0.", "out_norms.0.")
    for name, parameter in model.backbone.named_parameters():
        assert (parameter.grad is None) is name.startswith(frozen), name
        if name in loaded:
            assert torch.equal(parameter, loaded[name]) is name.startswith(frozen), name
