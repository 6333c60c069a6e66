"""The backbones compile as one program, without a graph break, and once for all sizes of images."""

import pytest
import torch

from mmmsv.models import MSVMamba, VMamba

# The first is not square: torch takes sides that are equal at first for one.
SIZES = [(96, 80), (80, 80), (97, 83), (128, 96), (100, 101), (112, 112), (90, 130), (81, 157), (160, 72), (119, 75)]
# torch 2.1 compiles without a graph break, too, but anew for some of them.
ONCE = torch.__version__ >= (2, 2)
SMALL = {"embed_dims": (16, 24, 32), "depths": (1, 1, 1)}
BACKBONES = {
    "arXiv": lambda: MSVMamba({"base": "tiny", **SMALL}, drop_path_rate=0),
    "NeurIPS": lambda: MSVMamba({"base": "v3_base", **SMALL}, drop_path_rate=0),
    "VMamba": lambda: VMamba({"base": "v2_tiny_s1l8", **SMALL}, drop_path_rate=0),
}


def maps_and_gradients(function, model, image):
    maps = function(image)
    loss = sum((each * torch.linspace(-1, 1, each.numel(), dtype=each.dtype).view(each.shape)).mean() for each in maps)
    return *maps, *torch.autograd.grad(loss, list(model.parameters()))


def compiled_once(model, backend):
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, dynamic=True, backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_one_program_for_all_sizes(name):
    torch.manual_seed(0)
    model = BACKBONES[name]().eval()
    compiled = compiled_once(model, "eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=ONCE):
        for size in SIZES:
            image = torch.randn(2, 3, *size)
            for ours, theirs in zip(compiled(image), model(image), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_one_training_program_for_all_sizes():
    torch.manual_seed(0)
    # Two stages: a third would have nothing new, and take as long as both.
    model = MSVMamba({"base": "tiny", "embed_dims": (16, 24), "depths": (1, 1)}, drop_path_rate=0).double()
    compiled = compiled_once(model, "aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=ONCE):
        for size in SIZES[:4]:
            image = torch.randn(2, 3, *size, dtype=torch.float64)
            pairs = zip(
                maps_and_gradients(compiled, model, image), maps_and_gradients(model, model, image), strict=True
            )
            for ours, theirs in pairs:
                torch.testing.assert_close(ours, theirs)
