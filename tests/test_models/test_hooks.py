"""Forward hooks fire on every module of the network, as tools expect that prune, quantise, profile or adapt it."""

import pytest
import torch
from torch import nn

from mmmsv.models import MSVMamba, VMamba

SMALL = {"embed_dims": (16, 24), "depths": (1, 1)}
HALF_SS2D = {"full_routes": (), "half_routes": ("row", "col", "row_rev", "col_rev")}
BACKBONES = {
    "nano": (MSVMamba, {"base": "nano"}),
    "nano_ungated": (MSVMamba, {"base": "nano", "gate": False}),
    "v3_tiny": (MSVMamba, {"base": "v3_tiny"}),
    "v3_base_gated": (MSVMamba, {"base": "v3_base"}),
    "half_ss2d": (MSVMamba, HALF_SS2D),
    "half_ss2d_norm_last": (MSVMamba, {**HALF_SS2D, "fusion": "norm_last"}),
    "vmamba": (VMamba, {"base": "tiny"}),
    "vmamba_v2": (VMamba, {"base": "v2_tiny_s1l8"}),
}
CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # which have no forward


@pytest.mark.parametrize("options", [{}, {"with_cp": True}, {"recompute": False}], ids=str)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", BACKBONES)
def test_hooks_fire_on_every_module(name, train, options):
    backbone, settings = BACKBONES[name]
    model = backbone({**SMALL, **settings}, **options).train(train)
    modules = {path for path, module in model.named_modules() if not isinstance(module, CONTAINERS)}
    before, after = set(), set()
    for path in modules:
        module = model.get_submodule(path)
        module.register_forward_pre_hook(lambda *_, path=path: before.add(path))
        module.register_forward_hook(lambda *_, path=path: after.add(path))
    with torch.set_grad_enabled(train):
        model(torch.randn(1, 3, 32, 40))
    assert before == after == modules
    assert {path for path in modules if path.endswith(".out_norm")}
