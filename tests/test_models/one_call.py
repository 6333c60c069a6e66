"""Small models whose blocks are computed in one call, or layer by layer."""

import contextlib

import pytest
import torch
from torch import nn

from mmmsv.kernels import whole_block
from mmmsv.models import MSVMamba, VMamba

from ..test_kernels.scan_inputs import assert_near

STAGES = 2
SMALL = {"embed_dims": (16, 24), "depths": (2, 1)}
BACKBONES = {
    "nano": (MSVMamba, {"base": "nano"}),
    "v3_tiny": (MSVMamba, {"base": "v3_tiny"}),
    "v3_base_gated": (MSVMamba, {"base": "v3_base"}),
    "vmamba": (VMamba, {"base": "tiny"}),
    "vmamba_v2": (VMamba, {"base": "v2_tiny_s1l8"}),
}
# With half_ss2d, of which no backend computes a block in one call.
EVERY = {**BACKBONES, "half_ss2d": (MSVMamba, {"full_routes": (), "half_routes": ("row", "col", "row_rev", "col_rev")})}
CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # which have no forward
# Relative to the largest number of a map; of a model with another weight it is off by some hundredths.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def model_of(name, **options):
    """Make a small model in which every weight matters."""
    torch.manual_seed(0)
    backbone, arch = EVERY[name]
    model = backbone({**SMALL, **arch}, **{"drop_path_rate": 0.0, **options})
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.2)
    return model.eval()


def set_weight(module, path, weight):
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, None if weight is None else nn.Parameter(weight, requires_grad=False))


@contextlib.contextmanager
def layer_by_layer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_block, "is_asked_for", lambda x: False)
        patch.setattr(whole_block, "is_downsampling_asked_for", lambda x: False)
        yield


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert (one.dtype, one.requires_grad) == (other.dtype, other.requires_grad)
        assert_near(one, other, TOLERANCE[one.dtype])


def outcome(way, *arguments):
    """Return the tensors that a call gives, or its error."""
    torch.manual_seed(1)
    try:
        y = way(*arguments)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return [y] if isinstance(y, torch.Tensor) else [*y]


def assert_same_outcome(way, *arguments):
    """Call it with blocks in one call where that is possible, and without."""
    ours = outcome(way, *arguments)
    with layer_by_layer():
        theirs = outcome(way, *arguments)
    if isinstance(ours, str) or isinstance(theirs, str):
        named = [each if isinstance(each, str) else "a result" for each in (ours, theirs)]
        assert ours == theirs, f"{named[0]} in place of {named[1]}"
    else:
        assert_same(ours, theirs)
