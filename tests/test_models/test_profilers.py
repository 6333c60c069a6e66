"""Tools that count by tables know the layers here: stand-ins with the tables and hooks of the tools."""

import sys
from math import prod
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mmmsv.analysis.flops import count
from mmmsv.models import MSVMamba, VMamba
from mmmsv.models.s6 import S6

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


def put_in_place(monkeypatch, module, name, table):
    """Make a module that holds a table, as if it were imported."""
    loaded = ModuleType(module)
    setattr(loaded, name, table)
    monkeypatch.setitem(sys.modules, module, loaded)


def build(name):
    backbone, settings = BACKBONES[name]
    return backbone({"embed_dims": (16, 24), "depths": (1, 1), **settings}).eval()


class Tool:
    """A tool that looks the exact types of layers up in a table, and counts in an attribute of each layer."""

    def __init__(self, name, monkeypatch):
        module, table, self.attribute = TOOLS[name]
        self.table = {nn.LayerNorm: self.norm, nn.Linear: self.linear, nn.Conv2d: self.conv}
        put_in_place(monkeypatch, module, table, self.table)

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
    return Tool(request.param, monkeypatch)


@pytest.mark.parametrize("name", BACKBONES)
def test_counts_what_the_models_compute(name, tool):
    model = build(name)
    norms, products = tool.count(model, torch.randn(1, 3, 48, 80))
    assert products == count(model, (48, 80), ours=True).total
    assert norms > 0


def test_both_maps_go_through_the_norm_of_a_fusion(tool):
    model = MSVMamba({"embed_dims": (16,), "depths": (1,)})
    norms, _ = tool.count(model, torch.randn(1, 3, 16, 24))
    inner, tokens, half = model.stages[0].blocks[0].scan.inner, 4 * 6, 2 * 3
    assert norms == 4 * tokens * 16 + (tokens + 3 * half) * inner  # stem, norm1, norm2, out_norm; and the fusion


def test_a_tool_that_is_imported_later(monkeypatch):
    model = MSVMamba({"embed_dims": (16,), "depths": (1,)})
    tool = Tool("thop", monkeypatch)
    _, products = tool.count(nn.Sequential(model), torch.randn(1, 3, 16, 24))
    assert products == count(model, (16, 24), ours=True).total


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.Linear, nn.Conv2d])
def test_a_tool_that_does_not_count_a_kind(kind, monkeypatch):
    """Old versions of thop have no norms; a model is built all the same."""
    tool = Tool("thop", monkeypatch)
    del tool.table[kind]
    build("nano")
    assert S6 in tool.table
    assert not [entered for entered in tool.table if issubclass(entered, kind)]


def test_a_tool_that_has_looked_before(monkeypatch):
    """ptflops prepares layers before it calls ``model.eval()``."""
    model = MSVMamba({"embed_dims": (16,), "depths": (1,)})
    tool = Tool("ptflops", monkeypatch)
    model.eval()
    model.stem.conv.register_forward_hook(tool.table[type(model.stem.conv)])
    with pytest.raises(RuntimeError, match=r"ptflops was imported after the model was built.*call it again"):
        model(torch.randn(1, 3, 16, 24))


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize(
    ("name", "module"),
    [*((name, "deepspeed.profiling.flops_profiler.profiler") for name in BACKBONES), ("nano", "calflops.pytorch_ops")],
)
def test_tools_that_replace_functions(name, module, grad, monkeypatch):
    table, seen = {nn.LSTM: None}, []
    put_in_place(monkeypatch, module, "MODULE_HOOK_MAPPING", table)
    model = build(name)

    def counting(function):
        def call(x, weight, *others, **options):
            y = function(x, weight, *others, **options)
            seen.append(y.numel() * weight[0].numel())
            return y

        return call

    for each in ("linear", "conv2d"):
        monkeypatch.setattr(functional, each, counting(getattr(functional, each)))
    for layer in model.modules():
        layer.__flops__ = layer.__macs__ = 0
        layer.register_forward_hook(table.get(type(layer), lambda *_: None))
    with torch.set_grad_enabled(grad):
        model(torch.randn(1, 3, 48, 80))
    macs, flops = (sum(getattr(layer, each) for layer in model.modules()) for each in ("__macs__", "__flops__"))
    monkeypatch.undo()
    assert sum(seen) + macs == count(model, (48, 80), ours=True).total
    assert flops > 2 * macs


@pytest.mark.parametrize("name", BACKBONES)
def test_a_tool_that_counts_ops(name, monkeypatch):
    table = {
        torch.ops.aten.convolution: lambda given, results: results[0].numel() * given[1][0].numel(),
        torch.ops.aten.mm: lambda given, results: results[0].numel() * given[0].shape[1],
        torch.ops.aten.addmm: lambda given, results: results[0].numel() * given[1].shape[1],
    }
    put_in_place(monkeypatch, "ptflops.aten_ops", "ATEN_OPS_MAPPING", table)
    model, counted = build(name), []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            results = function(*args, **(kwargs or {}))
            packet = function._overloadpacket
            if packet in table:
                counted.append(table[packet](args, results if isinstance(results, tuple) else (results,)))
            return results

    with Counter(), torch.no_grad():
        model(torch.randn(1, 3, 48, 80))
    assert sum(counted) == count(model, (48, 80), ours=True).total
