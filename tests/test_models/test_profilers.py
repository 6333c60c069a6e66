"""Tools that count by the types of layers know the layers here: thop and ptflops, as their tables and hooks are."""

import sys
from math import prod
from types import ModuleType

import pytest
import torch
from torch import nn

from mmmsv.analysis.flops import count
from mmmsv.models import MSVMamba, VMamba

HALF_SS2D = {"full_routes": (), "half_routes": ("row", "col", "row_rev", "col_rev")}
BACKBONES = {
    "nano": (MSVMamba, {"base": "nano"}),
    "v3_tiny": (MSVMamba, {"base": "v3_tiny"}),
    "v3_base_gated": (MSVMamba, {"base": "v3_base"}),
    "half_ss2d": (MSVMamba, HALF_SS2D),
    "vmamba": (VMamba, {"base": "tiny"}),
    "vmamba_v2": (VMamba, {"base": "v2_tiny_s1l8"}),
}
TOOLS = {
    "thop": ("thop.profile", "register_hooks", "total_ops"),
    "ptflops": ("ptflops.pytorch_ops", "MODULES_MAPPING", "__flops__"),
}


class Tool:
    """A tool that looks the exact types of layers up in a table, and counts in an attribute of each layer."""

    def __init__(self, name):
        self.module, table, self.attribute = TOOLS[name]
        self.table = {nn.LayerNorm: self.norm, nn.Linear: self.linear, nn.Conv2d: self.conv}
        self.loaded = ModuleType(self.module)
        setattr(self.loaded, table, self.table)

    def add(self, layer, number):
        setattr(layer, self.attribute, getattr(layer, self.attribute) + number)

    def norm(self, layer, inputs, output):
        """Count 2^40 a number, more than all products of a small model."""
        self.add(layer, inputs[0].numel() << 40)

    def linear(self, layer, inputs, output):
        self.add(layer, output.numel() * inputs[0].shape[-1])

    def conv(self, layer, inputs, output):
        batch, _, *sizes = output.shape
        products = layer.in_channels * layer.out_channels // layer.groups
        self.add(layer, batch * prod(sizes) * products * prod(layer.kernel_size))

    def count(self, model, image):
        """Return the numbers that go through norms, and the multiply-adds of all else."""
        hooks = []
        model.eval()
        for layer in model.modules():
            if type(layer) in self.table:
                setattr(layer, self.attribute, 0)
                hooks.append(layer.register_forward_hook(self.table[type(layer)]))
        with torch.no_grad():
            model(image)
        for hook in hooks:
            hook.remove()
        total = self._sum(model)
        return total >> 40, total % (1 << 40)

    def _sum(self, layer):
        if type(layer) in self.table:
            return getattr(layer, self.attribute)
        return sum(map(self._sum, layer.children()))


@pytest.fixture(params=TOOLS)
def tool(request, monkeypatch):
    tool = Tool(request.param)
    monkeypatch.setitem(sys.modules, tool.module, tool.loaded)
    return tool


@pytest.mark.parametrize("name", BACKBONES)
def test_counts_what_the_models_compute(name, tool):
    backbone, settings = BACKBONES[name]
    model = backbone({"embed_dims": (16, 24), "depths": (1, 1), **settings})
    norms, products = tool.count(model, torch.randn(1, 3, 48, 80))
    assert products == count(model.eval(), (48, 80), ours=True).total
    assert norms > 0


def test_both_maps_go_through_the_norm_of_a_fusion(tool):
    model = MSVMamba({"embed_dims": (16,), "depths": (1,)})
    norms, _ = tool.count(model, torch.randn(1, 3, 16, 24))
    inner, tokens, half = model.stages[0].blocks[0].scan.inner, 4 * 6, 2 * 3
    assert norms == 4 * tokens * 16 + (tokens + 3 * half) * inner  # stem, norm1, norm2, out_norm; and the fusion


def test_a_tool_that_is_imported_later(monkeypatch):
    model, tool = MSVMamba({"embed_dims": (16,), "depths": (1,)}), Tool("thop")
    monkeypatch.setitem(sys.modules, tool.module, tool.loaded)
    _, products = tool.count(nn.Sequential(model), torch.randn(1, 3, 16, 24))
    assert products == count(model, (16, 24), ours=True).total


def test_a_tool_that_has_looked_before(monkeypatch):
    """ptflops prepares layers before it calls ``model.eval()``."""
    model, tool = MSVMamba({"embed_dims": (16,), "depths": (1,)}), Tool("ptflops")
    monkeypatch.setitem(sys.modules, tool.module, tool.loaded)
    model.eval()
    model.stem.conv.register_forward_hook(tool.table[type(model.stem.conv)])
    with pytest.raises(RuntimeError, match=r"ptflops was imported after the model was built.*call it again"):
        model(torch.randn(1, 3, 16, 24))
