"""What tools that look into a network choose by default gives maps as they read them, ``(B, C, H, W)``."""

import pytest
import torch
from mmengine.utils.dl_utils import is_norm
from torch import nn

from mmmsv.models import MSVMamba, VMamba

BACKBONES = {"msvmamba": (MSVMamba, "nano"), "vmamba": (VMamba, "v2_tiny_s1l8")}


def last_norm(model, image):
    """Choose as ``vis_cam`` of mmpretrain does."""
    return [layer for layer in model.modules() if is_norm(layer)][-1]


def vit_like_norm(model, image):
    """Choose as ``vis_cam --vit-like`` does, for networks with and without a class token."""
    norms = [layer for layer in model.modules() if is_norm(layer)]
    return norms[-3 if getattr(model[0], "num_extra_tokens", 1) > 0 else -1]


def last_map(model, image):
    """Choose as torchcam does: what has returned the last map before pooling."""
    returned = []
    hooks = [layer.register_forward_hook(lambda layer, _, y: returned.append((layer, y))) for layer in model.modules()]
    model(image)
    for hook in hooks:
        hook.remove()
    maps = [layer for layer, y in returned if isinstance(y, torch.Tensor) and y.dim() == 4 and y.shape[2:] != (1, 1)]
    return maps[-1]


def last_output_norm(model, image):
    return model[0].out_norms["1"]


class Head(nn.Module):
    """Pool the last map and classify."""

    def __init__(self):
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(24, 5)

    def forward(self, maps):
        return self.fc(self.pool(maps[-1]).flatten(1))


@pytest.mark.parametrize(
    "choose", [last_norm, vit_like_norm, last_map, last_output_norm], ids=lambda choose: choose.__name__
)
@pytest.mark.parametrize("name", BACKBONES)
def test_class_activation_map(name, choose):
    torch.manual_seed(0)
    backbone, base = BACKBONES[name]
    model = nn.Sequential(backbone({"base": base, "embed_dims": (16, 24), "depths": (1, 1)}), Head()).eval()
    image = torch.randn(1, 3, 48, 80)

    def map_of(y):
        """Weigh the channels of a map by their mean gradients: Grad-CAM."""
        return (torch.autograd.grad(model[1]([y])[0, 3], y)[0].mean((2, 3), keepdim=True) * y).sum(1)

    seen = []
    hook = choose(model, image).register_forward_hook(lambda _layer, _input, y: seen.append(y.detach()))
    output = model[0](image)[-1].detach()
    hook.remove()
    assert len(seen) == 1
    assert seen[0].is_contiguous()
    torch.testing.assert_close(map_of(seen[0].requires_grad_()), map_of(output.requires_grad_()))


def test_output_norms_give_the_numbers_of_a_layer_norm():
    torch.manual_seed(0)
    model = MSVMamba({"base": "nano", "embed_dims": (16,), "depths": (1,)})
    norm, x = model.out_norms["0"], torch.randn(2, 5, 7, 16)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    assert torch.equal(norm(x), super(type(norm), norm).forward(x).permute(0, 3, 1, 2))
    assert list(norm.state_dict()) == ["weight", "bias"]
