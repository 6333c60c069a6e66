"""Every published arch learns from photographs, and archs far from the published ones run and get gradients, too."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms.functional import resize

from mmmsv.models import MSVMamba, VMamba

from .gradients import without_gradient

PHOTOGRAPHS = Path(__file__).parents[2] / "data/clothing_mini/train"
PUBLISHED = [(model, arch) for model in (MSVMamba, VMamba) for arch in model.archs]
SMALL = {"embed_dims": (32, 48, 64, 80), "depths": (1, 1, 2, 1)}
SS2D = {"full_routes": ("row", "col", "row_rev", "col_rev"), "half_routes": ()}
HALF_SS2D = {"full_routes": (), "half_routes": ("row", "col", "row_rev", "col_rev")}

UNUSUAL = {
    "half_stride_1": {"half_stride": 1},
    "half_stride_3": {"half_stride": 3},
    "half_stride_4": {"half_stride": 4},
    "half_stride_3_norm_last": {"half_stride": 3, "fusion": "norm_last"},
    "half_kernel_3": {"half_kernel": 3},
    "all_on_the_half_map": HALF_SS2D,
    "all_on_the_half_map_kernel_3": {**HALF_SS2D, "half_kernel": 3},
    "all_on_the_half_map_norm_last": {**HALF_SS2D, "fusion": "norm_last"},
    "all_on_a_third": {**HALF_SS2D, "half_stride": 3},
    "mlp": {"ffn": "mlp"},
    "mlp_post_norm": {"ffn": "mlp", "ffn_norm": "post"},
    "no_ffn": {"ffn": "none"},
    "no_ffn_norm_last": {"ffn": "none", "fusion": "norm_last"},
    "plain": {"se": False, "gate": False, "conv_bias": False, "ffn": "none", "state_size": 3},
    "broken_ratios": {"ssm_ratio": 1.25, "ffn_ratio": 1.5},
    "one_route_four_times": {"full_routes": ("row",) * 4, "half_routes": ()},
    "one_route_on_both_maps": {"full_routes": ("col",) * 2, "half_routes": ("col",) * 5},
    "stage_by_stage": {"stages": [SS2D, {"half_stride": 3, "se": False}, HALF_SS2D, {"ffn": "mlp", "state_size": 2}]},
    "mixed_stem": {"stem": "conv", "downsample": "merge"},
    "mixed_downsample": {"stem": "patch", "downsample": "conv"},
    "one_stage": {"embed_dims": (24,), "depths": (2,)},
    "five_stages": {"embed_dims": (16, 24, 32, 48, 64), "depths": (1,) * 5},
    "narrowing": {"embed_dims": (32, 16), "depths": (1, 1)},
}


@pytest.fixture(scope="module")
def photographs():
    """Photographs of four classes, 32 x 40 pixels: the last maps are 1 x 2, so that a state has a token to go to."""
    paths = [min((PHOTOGRAPHS / name).iterdir()) for name in ("dress", "hat", "pants", "shoes")]
    images = [resize(read_image(str(path), ImageReadMode.RGB), [32, 40], antialias=True) for path in paths]
    return (torch.stack(images) / 255 - 0.45) / 0.225


@pytest.mark.slow
@pytest.mark.parametrize(("model", "arch"), PUBLISHED, ids=lambda value: getattr(value, "__name__", value))
def test_published_archs_learn(model, arch, photographs):
    """In full size. The head is not trained, so what lowers the loss is in the backbone."""
    torch.manual_seed(0)
    backbone = model(arch, out_indices=(3,), drop_path_rate=0.0)
    head = nn.Linear(backbone.arch.embed_dims[-1], 4).requires_grad_(False)
    initial = [parameter.detach().clone() for parameter in backbone.parameters()]
    # Without weight decay, which would change parameters that get no gradient.
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=5e-5, weight_decay=0.0)
    losses = []
    # Until it is below a tenth, in at most 20 steps.
    while not losses or (len(losses) < 20 and losses[-1] > 0.1 * losses[0]):
        optimizer.zero_grad()
        loss = cross_entropy(head(backbone(photographs)[0].mean((2, 3))), torch.arange(4))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 1.0 < losses[0] < 2.5  # log 4 = 1.39
    assert losses[-1] <= 0.1 * losses[0]
    assert without_gradient(backbone.named_parameters()) == []
    assert not any(torch.equal(p, before) for p, before in zip(backbone.parameters(), initial, strict=True))


@pytest.mark.parametrize("settings", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_archs(settings):
    torch.manual_seed(0)
    arch = {**SMALL, **settings}
    indices = tuple(range(len(arch["depths"])))
    backbone = MSVMamba(arch, out_indices=indices, drop_path_rate=0.0)
    maps = backbone(torch.randn(2, 3, 33, 101))
    strided = [(9, 26) if arch.get("stem") == "conv" else (8, 25)]
    for _ in indices[1:]:
        strided.append(tuple((side + 1) // 2 for side in strided[-1]))
    assert [m.shape for m in maps] == [(2, dim, *size) for dim, size in zip(arch["embed_dims"], strided, strict=True)]
    assert all(m.isfinite().all() for m in maps)
    sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    assert without_gradient(backbone.named_parameters()) == []
