"""Graphs that torch.fx and torch.jit record of a backbone, and torch.jit.script, which there is not."""

import pytest
import torch
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from mmmsv.models import MSVMamba, VMamba

SMALL = {"embed_dims": (16, 24), "depths": (1, 2)}
BACKBONES = {
    "msvmamba_arxiv": (MSVMamba, "tiny"),
    "msvmamba_neurips": (MSVMamba, "v3_base"),
    "vmamba_arxiv": (VMamba, "tiny"),
    "vmamba_2024": (VMamba, "v2_tiny_s1l8"),
}
NODES = ["stem", "stages.0", "out_norms.0", "stages.1", "out_norms.1"]


class Classifier(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.fc = backbone, nn.Linear(24, 5)

    def forward(self, image):
        return self.fc(self.backbone(image)[-1].mean((2, 3)))


@pytest.fixture(params=BACKBONES)
def backbone(request):
    torch.manual_seed(0)
    model, base = BACKBONES[request.param]
    return model({"base": base, **SMALL}, drop_path_rate=0.0).eval()


def test_torch_fx_records_the_parts(backbone):
    graph, image = fx.symbolic_trace(backbone), torch.randn(2, 3, 37, 52)
    for ours, traced in zip(backbone(image), graph(image), strict=True):
        assert torch.equal(ours, traced)
    assert graph.state_dict().keys() == backbone.state_dict().keys()


def test_feature_extractor(backbone):
    model, image = Classifier(backbone).eval(), torch.randn(2, 3, 37, 52)
    assert [f"backbone.{name}" for name in NODES] == get_graph_node_names(model)[1][1:6]
    extractor = create_feature_extractor(model, {"backbone.out_norms.0": "map", "fc": "scores"})
    features = extractor(image)
    assert torch.equal(features["map"], backbone(image)[0])
    assert torch.equal(features["scores"], model(image))
    extractor.train()(image)["scores"].sum().backward()
    assert all(weight.grad is not None for weight in backbone.stages.parameters())


@pytest.mark.parametrize("part", ["stem", "stages.0", "out_norms.0"])
def test_a_part_is_not_traced_alone(part):
    module = MSVMamba({"base": "nano", **SMALL}).get_submodule(part)
    with pytest.raises(TypeError, match=r"is one node to torch\.fx, and cannot be traced alone; trace the backbone"):
        fx.symbolic_trace(module)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_program_takes_images_of_odd_sizes(backbone):
    program = torch.jit.trace(backbone, torch.randn(1, 3, 32, 32), check_trace=False)
    for size in ((1, 3, 32, 32), (2, 3, 37, 51)):
        image = torch.randn(size)
        for ours, traced in zip(backbone(image), program(image), strict=True):
            torch.testing.assert_close(traced, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.Sequential, Classifier], ids=["alone", "list", "classifier"])
def test_there_is_no_torch_script(wrap):
    with pytest.raises(NotImplementedError, match=r"MSVMamba is not made for torch\.jit\.script"):
        torch.jit.script(wrap(MSVMamba({"base": "nano", **SMALL})))
