"""The translation between the authors' names and ours loses nothing, both ways."""

import pytest
import torch

from mmmsv.checkpoints.infer_arch import assumptions, infer_arch, name_of
from mmmsv.checkpoints.translation import from_authors, is_flat, to_authors
from mmmsv.models import MSVMamba, VMamba
from tests.test_models.golden import FILES, arch_of, load_golden

PUBLISHED = [(model, name) for model in (MSVMamba, VMamba) for name in model.archs]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def random_weights(model):
    return {f"backbone.{name}": torch.randn_like(value) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", FILES)
def test_there_and_back_from_the_authors_files(name):
    """The file itself comes out again, its convolutions of 1 x 1 included."""
    golden = load_golden(name)
    arch = MSVMamba(arch_of(golden["meta"])).arch
    classifier = golden["model"]
    assert is_flat(classifier) is (name == "vmamba_s1.pt")
    assert_same(to_authors(from_authors(classifier, arch), arch, True, is_flat(classifier)), classifier)
    dense = {f"backbone.{key}": value for key, value in classifier.items() if not key.startswith("classifier.")}
    dense |= {f"backbone.{key}": value for key, value in golden["outnorm"].items()}
    dense |= {"decode_head.conv_seg.weight": torch.ones(2, 3, 1, 1)}
    assert_same(to_authors(from_authors(dense, arch), arch, False, is_flat(dense)), dense)


@pytest.mark.parametrize("flat", [False, True], ids=["stacked", "flat"])
@pytest.mark.parametrize(
    "arch",
    [
        {},
        {"full_routes": ("row", "col", "row_rev"), "half_routes": ("col_rev",)},
        {"full_routes": (), "half_routes": ("row", "col", "row_rev", "col_rev"), "half_kernel": 3, "ffn": "mlp"},
        {"half_routes": (), "gate": False, "conv_bias": False, "state_size": 3},
        {"fusion": "norm_last", "ffn_norm": "post", "stem": "conv", "downsample": "conv", "ffn": "none", "se": False},
        {"stages": [{"ffn": "mlp"}, {"half_routes": ()}, {}, {"full_routes": ("row", "col")}]},
    ],
    ids=["default", "three full routes", "half map alone", "full map alone", "norm last", "mixed stages"],
)
def test_there_and_back_from_ours(arch, flat):
    torch.manual_seed(0)
    model = MSVMamba({"embed_dims": (8, 16, 32, 48), "depths": (1, 2, 1, 1), **arch})
    dense = random_weights(model)
    assert_same(from_authors(to_authors(dense, model.arch, False, flat), model.arch), dense)
    classifier = {**dense, "head.fc.weight": torch.randn(10, 48), "head.fc.bias": torch.randn(10)}
    classifier = {key: value for key, value in classifier.items() if ".out_norms." not in key or ".3." in key}
    assert_same(from_authors(to_authors(classifier, model.arch, True, flat), model.arch), classifier)


def test_half_resolution_set_is_first_in_the_arxiv_family_and_last_in_the_neurips_one():
    for name, half in (("arxiv.pt", 0), ("neurips.pt", -1)):
        golden = load_golden(name)
        ours = from_authors(golden["model"], MSVMamba(arch_of(golden["meta"])).arch)
        theirs = golden["model"]["layers.0.blocks.0.op.dt_projs_bias"]
        assert torch.equal(ours["backbone.stages.0.blocks.0.scan.half_scan.dt_bias"][0], theirs[half])


def test_names_of_no_weight():
    golden = load_golden("arxiv.pt")
    arch = MSVMamba(arch_of(golden["meta"])).arch
    with pytest.raises(ValueError, match=r"layers.9.norm.weight is no weight of this arch in the authors' layout"):
        from_authors({"layers.9.norm.weight": torch.ones(1)}, arch)
    with pytest.raises(ValueError, match=r"backbone.layer1.weight is no weight of this arch"):
        to_authors({"backbone.layer1.weight": torch.ones(1)}, arch, False)


@pytest.mark.parametrize(("model", "name"), PUBLISHED)
def test_arch_is_told_from_weights(model, name):
    with torch.device("meta"):
        backbone = model(name)
    ours = backbone.state_dict()
    theirs = to_authors({f"backbone.{key}": value for key, value in ours.items()}, backbone.arch, False)
    for weights in (ours, {key.removeprefix("backbone."): value for key, value in theirs.items()}):
        assert infer_arch(weights) == backbone.arch
        assert name_of(infer_arch(weights)) == f"mmmsv.{model.__name__}, arch={name!r}"


@pytest.mark.parametrize("name", FILES)
def test_arch_is_told_from_golden_files(name):
    golden = load_golden(name)
    assert infer_arch(golden["model"]) == MSVMamba(arch_of(golden["meta"])).arch


@pytest.mark.parametrize("routes", [{}, {"full_routes": (), "half_routes": ("row", "col", "row_rev", "col_rev")}])
def test_kernel_of_the_half_map_is_told_from_weights(routes):
    with torch.device("meta"):
        model = MSVMamba({"base": "nano", "half_kernel": 3, **routes})
    assert infer_arch(model.state_dict()) == model.arch
    assert "half_kernel=3" in name_of(model.arch)


def test_assumptions_of_stages_that_differ():
    stages = [{"half_routes": ()}, {}, {}, {"full_routes": (), "half_routes": ("col",)}]
    assert assumptions(MSVMamba({"base": "nano", "stages": stages}).arch) == (
        "full_routes=('row',) or full_routes=('row',), half_routes=('row_rev', 'col', 'col_rev'), half_stride=2 or "
        "half_routes=('col',), half_stride=2"
    )


def test_other_archs_are_told_as_a_config_has_them():
    arch = MSVMamba({"base": "nano", "stages": [{"half_routes": ()}, {}, {}, {"ffn": "mlp"}]}).arch
    summary = name_of(arch)
    assert summary.startswith(
        "mmmsv.MSVMamba, arch=dict(embed_dims=(48, 96, 192, 384), depths=(1, 2, 5, 2), half_routes=()"
    )
    assert MSVMamba(eval(summary.removeprefix("mmmsv.MSVMamba, arch="))).arch == arch
