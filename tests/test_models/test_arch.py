"""Archs: the published ones by name, those that users write as dicts, and what is said to settings that cannot be."""

import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmmsv.models import MSVMamba, VMamba
from mmmsv.models.arch import Arch, BlockArch, resolve_arch

ALL_ROUTES = ("row", "col", "row_rev", "col_rev")
SMALL = {"embed_dims": (16, 32), "depths": (1, 2)}

# Millions of parameters with 1000 classes. Those of MSVMamba and of VMamba's tiny are known from elsewhere; the others
# are what is counted here, those of 2024 published as in PUBLISHED.
PARAMETERS = {
    (MSVMamba, "nano"): 6.864136,
    (MSVMamba, "micro"): 11.879272,
    (MSVMamba, "tiny"): 33.046312,
    (MSVMamba, "v3_tiny"): 32.263720,
    (MSVMamba, "v3_small"): 50.216296,
    (MSVMamba, "v3_base"): 90.591976,
    (MSVMamba, "v3_base_ungated"): 88.391144,
    (VMamba, "tiny"): 22.893448,
    (VMamba, "small"): 44.417416,
    (VMamba, "base"): 76.254056,
    (VMamba, "v2_tiny_s1l8"): 30.249064,
    (VMamba, "v2_tiny_s2l5"): 30.705832,
    (VMamba, "v2_small_s2l15"): 50.147752,
    (VMamba, "v2_small_s1l20"): 49.012840,
    (VMamba, "v2_base_s2l15"): 88.557800,
    (VMamba, "v2_base_s1l20"): 86.614504,
}
PUBLISHED = {"v2_tiny_s1l8": 30, "v2_small_s2l15": 50, "v2_base_s2l15": 89}


def resolve(arch, model=MSVMamba):
    return resolve_arch(arch, model.archs, model.__name__)


def test_all_archs_are_counted():
    assert set(PARAMETERS) == {(model, arch) for model in (MSVMamba, VMamba) for arch in model.archs}


@pytest.mark.parametrize(("model", "arch"), PARAMETERS, ids=lambda value: getattr(value, "__name__", value))
def test_parameters(model, arch):
    with torch.device("meta"):
        backbone = model(arch, out_indices=(3,))
        head = nn.Linear(backbone.arch.embed_dims[-1], 1000)
    parameters = sum(parameter.numel() for part in (backbone, head) for parameter in part.parameters())
    assert parameters / 1e6 == PARAMETERS[model, arch]
    assert round(parameters / 1e6) == PUBLISHED.get(arch, round(PARAMETERS[model, arch]))


def test_what_tells_the_published_families_apart():
    arxiv, neurips = MSVMamba.archs["tiny"], MSVMamba.archs["v3_tiny"]
    assert (arxiv.stem, arxiv.downsample, arxiv.blocks[0].fusion) == ("patch", "merge", "norm_first")
    assert (neurips.stem, neurips.downsample, neurips.blocks[0].fusion) == ("conv", "conv", "norm_last")
    assert MSVMamba.archs["v3_base"].blocks[0].gate
    assert not MSVMamba.archs["v3_base_ungated"].blocks[0].gate
    for arch in VMamba.archs.values():
        assert arch.blocks[0].full_routes == ALL_ROUTES
        assert (arch.blocks[0].half_routes, arch.blocks[0].se) == ((), False)


@pytest.mark.parametrize("model", [MSVMamba, VMamba])
def test_a_base_alone_is_the_published_arch(model):
    for name, arch in model.archs.items():
        assert resolve(name, model) is arch
        assert resolve(arch, model) is arch
        assert resolve({"base": name}, model) == arch


def test_a_base_gives_what_is_not_set():
    arch = resolve({"base": "v3_small", "state_size": 4, "downsample": "merge"})
    published = MSVMamba.archs["v3_small"]
    assert (arch.embed_dims, arch.depths, arch.stem) == (published.embed_dims, published.depths, "conv")
    assert arch.downsample == "merge"
    for block, other in zip(arch.blocks, published.blocks, strict=True):
        assert vars(block) == {**vars(other), "state_size": 4}


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_a_base_with_another_number_of_stages(stages):
    arch = resolve({"base": "nano", "embed_dims": [32] * stages, "depths": [1] * stages})
    assert arch.blocks == MSVMamba.archs["nano"].blocks[:1] * stages


@pytest.mark.parametrize("model", [MSVMamba, VMamba])
def test_without_a_base_the_rest_is_that_of_tiny(model):
    arch = resolve(SMALL, model)
    assert arch == Arch(SMALL["embed_dims"], SMALL["depths"], model.archs["tiny"].blocks[0])


def test_stages_override_what_is_set_for_all():
    arch = resolve({**SMALL, "se": False, "state_size": 2, "stages": [{"state_size": 8}, {"se": True, "ffn": "mlp"}]})
    assert [block.state_size for block in arch.blocks] == [8, 2]
    assert [block.se for block in arch.blocks] == [False, True]
    assert [block.ffn for block in arch.blocks] == ["conv", "mlp"]
    model = MSVMamba(arch, out_indices=(1,))
    assert [stage.blocks[0].scan.half_scan.A_log.shape[-1] for stage in model.stages] == [8, 2]
    assert [type(stage.blocks[0].ffn).__name__ for stage in model.stages] == ["ConvFFN", "MLP"]


def test_lists_are_as_good_as_tuples():
    lists = {key: list(value) for key, value in SMALL.items()}
    arch = resolve({**lists, "full_routes": ["row", "col"], "half_routes": []})
    assert arch == resolve({**SMALL, "full_routes": ("row", "col"), "half_routes": ()})
    assert hash(arch) == hash(resolve({**SMALL, "full_routes": ("row", "col"), "half_routes": ()}))
    assert Arch([16], [1], [BlockArch()]) == Arch((16,), (1,), (BlockArch(),))
    assert hash(Arch([16], [1], [BlockArch()])) == hash(Arch((16,), (1,), (BlockArch(),)))


def test_the_dict_of_the_caller_stays_as_it_is():
    stages = [{"se": False}, {}]
    given = {**SMALL, "half_routes": ["col"], "stages": stages}
    resolve(given)
    assert given == {**SMALL, "half_routes": ["col"], "stages": [{"se": False}, {}]}


def test_from_a_config_file(tmp_path):
    """As a text config, in one that inherits from it, as MMEngine writes it out again, and from the command line."""
    (tmp_path / "base.py").write_text("backbone = dict(arch='tiny', out_indices=(3, ))\n")
    (tmp_path / "child.py").write_text(
        "_base_ = './base.py'\n"
        "stages = [dict(se=False), dict(), dict(), dict()]\n"
        "backbone = dict(arch=dict(_delete_=True, base='nano', full_routes=['col'], stages=stages))\n"
    )
    expected = resolve({"base": "nano", "full_routes": ("col",), "stages": [{"se": False}, {}, {}, {}]})
    cfg = Config.fromfile(tmp_path / "child.py")
    assert resolve(cfg.backbone.arch) == expected
    cfg.dump(tmp_path / "dumped.py")
    assert resolve(Config.fromfile(tmp_path / "dumped.py").backbone.arch) == expected
    cfg.merge_from_dict({"backbone.arch.stages.0.se": True, "backbone.arch.half_routes": []})
    assert resolve(cfg.backbone.arch) == resolve({"base": "nano", "full_routes": ("col",), "half_routes": ()})


ARRAY = np.array(["row", "col"])


@pytest.mark.parametrize(
    ("arch", "error", "message"),
    [
        # The dict as a whole
        (None, TypeError, "arch is a NoneType, expected a name"),
        (["nano"], TypeError, "arch is a list, expected a name"),
        (BlockArch(), TypeError, "arch is a BlockArch, expected a name"),
        ({}, ValueError, r"lacks \['embed_dims', 'depths'\], or a base"),
        ({"depths": (1, 1)}, ValueError, r"lacks \['embed_dims'\]"),
        ({"base": "large"}, ValueError, "no arch 'large'; choose one of nano, micro"),
        ({"base": None}, ValueError, "no arch None; choose one of nano, micro"),
        ({"base": {"base": "nano"}}, ValueError, "no arch .*choose one of nano, micro"),
        ({"base": "nano", "type": "x"}, ValueError, r"unknown key\(s\) \['type'\]"),
        ({"base": "nano", 1: 2}, ValueError, r"unknown key\(s\) \[1\]"),
        # Widths and depths
        (
            {"base": "nano", "depths": (1, 1)},
            ValueError,
            r"\(48, 96, 192, 384\) and depths \(1, 1\) must be of one length",
        ),
        ({"embed_dims": (), "depths": ()}, ValueError, "must be of one length >= 1"),
        ({**SMALL, "embed_dims": (16.0, 32)}, ValueError, r"embed_dims is \(16.0, 32\), expected whole numbers"),
        (
            {**SMALL, "embed_dims": [[16], [32]]},
            ValueError,
            r"embed_dims is .*\[16\], \[32\].*, expected whole numbers",
        ),
        ({**SMALL, "embed_dims": np.array([16, 32])}, TypeError, "embed_dims is array.*, expected a list or tuple"),
        ({**SMALL, "depths": (1, True)}, ValueError, r"depths is \(1, True\), expected whole numbers"),
        ({**SMALL, "depths": "12"}, TypeError, "depths is '12', expected a list or tuple"),
        ({**SMALL, "depths": None}, TypeError, "depths is None, expected a list or tuple"),
        ({**SMALL, "embed_dims": (3, 32)}, ValueError, r"ssm_ratio is 2.0, .*at least 8 of the embed_dims \(3, 32\)"),
        ({**SMALL, "embed_dims": (9, 18), "stem": "conv"}, ValueError, r"stem 'conv' halves .* is 9: give an even one"),
        # Stages
        ({**SMALL, "stages": [{}] * 3}, ValueError, r"3 stages.*depths \(1, 2\).*2"),
        ({**SMALL, "stages": []}, ValueError, r"0 stages.*depths \(1, 2\).*2"),
        ({**SMALL, "stages": {0: {}, 1: {}}}, TypeError, "stages in the arch dict is .*expected a list of dicts"),
        ({**SMALL, "stages": [{}, None]}, TypeError, "stages in the arch dict is .*expected a list of dicts"),
        ({**SMALL, "stages": ""}, TypeError, "stages in the arch dict is '', expected a list of dicts"),
        (
            {**SMALL, "stages": [{}, {"sse": True}]},
            ValueError,
            r"stages in the arch dict has unknown key\(s\) \['sse'\]",
        ),
        (
            {**SMALL, "stages": [{"depths": 1}, {}]},
            ValueError,
            r"stages in the arch dict has unknown key\(s\) \['depths",
        ),
        (
            {**SMALL, "stages": [{"base": "nano"}, {}]},
            ValueError,
            r"stages in the arch dict has unknown key\(s\) \['base",
        ),
        (
            {**SMALL, "stages": [{}, {"half_stride": 0}]},
            ValueError,
            "half_stride is 0, expected .* in 1..7, the half_kernel",
        ),
        ({**SMALL, "stages": [{}, {"ssm_ratio": 1.01}]}, ValueError, "ssm_ratio is 1.01, expected a number that makes"),
        ({**SMALL, "half_routes": (), "stages": [{}, {"full_routes": ()}]}, ValueError, "are both empty"),
        # Routes
        ({**SMALL, "full_routes": (), "half_routes": []}, ValueError, "full_routes and half_routes are both empty"),
        ({**SMALL, "full_routes": "row"}, TypeError, "full_routes is 'row', expected a list or tuple"),
        ({**SMALL, "half_routes": None}, TypeError, "half_routes is None, expected a list or tuple"),
        ({**SMALL, "half_routes": {"row"}}, TypeError, "half_routes is {'row'}, expected a list or tuple"),
        (
            {**SMALL, "half_routes": ["row", None]},
            ValueError,
            r"half_routes is \('row', None\), expected routes out of",
        ),
        ({**SMALL, "full_routes": [ARRAY]}, ValueError, "full_routes is .*expected routes out of"),
        # Choices
        ({**SMALL, "fusion": "late"}, ValueError, "fusion is 'late', expected 'norm_first' or 'norm_last'"),
        ({**SMALL, "ffn_norm": "both"}, ValueError, "ffn_norm is 'both', expected 'pre' or 'post'"),
        ({**SMALL, "ffn": None}, ValueError, "ffn is None, expected 'conv', 'mlp' or 'none'"),
        ({**SMALL, "stem": "vit"}, ValueError, "stem is 'vit', expected 'patch' or 'conv'"),
        ({**SMALL, "downsample": ["conv"]}, ValueError, r"downsample is \['conv'\], expected 'merge' or 'conv'"),
        ({**SMALL, "fusion": ARRAY}, ValueError, "fusion is .*expected 'norm_first' or 'norm_last'"),
        ({**SMALL, "stem": ARRAY}, ValueError, "stem is .*expected 'patch' or 'conv'"),
        # Numbers and switches
        ({**SMALL, "half_stride": 8}, ValueError, "half_stride is 8, expected .* in 1..7, the half_kernel"),
        ({**SMALL, "half_stride": 0}, ValueError, "half_stride is 0, expected .* in 1..7, the half_kernel"),
        ({**SMALL, "half_stride": 2.0}, ValueError, "half_stride is 2.0, expected .* in 1..7, the half_kernel"),
        (
            {**SMALL, "half_stride": (2, 2)},
            ValueError,
            r"half_stride is \(2, 2\), expected .* in 1..7, the half_kernel",
        ),
        (
            {**SMALL, "half_kernel": 3, "half_stride": 4},
            ValueError,
            "half_stride is 4, expected a whole number in 1..3, the half_kernel",
        ),
        ({**SMALL, "half_kernel": 5}, ValueError, "half_kernel is 5, expected 3 or 7"),
        ({**SMALL, "half_kernel": 1, "half_stride": 1}, ValueError, "half_kernel is 1, expected 3 or 7"),
        ({**SMALL, "half_kernel": 7.0}, ValueError, "half_kernel is 7.0, expected 3 or 7"),
        ({**SMALL, "half_kernel": (3, 3)}, ValueError, r"half_kernel is \(3, 3\), expected 3 or 7"),
        ({**SMALL, "state_size": "4"}, ValueError, "state_size is '4', expected .* at least 1"),
        ({**SMALL, "state_size": True}, ValueError, "state_size is True, expected .* at least 1"),
        ({**SMALL, "state_size": None}, ValueError, "state_size is None, expected .* at least 1"),
        ({**SMALL, "ssm_ratio": "2"}, ValueError, "ssm_ratio is '2', expected a number above 0"),
        ({**SMALL, "ssm_ratio": True}, ValueError, "ssm_ratio is True, expected a number above 0"),
        ({**SMALL, "ffn_ratio": float("inf")}, ValueError, "ffn_ratio is inf, expected a number above 0"),
        ({**SMALL, "ffn_ratio": -2.0}, ValueError, "ffn_ratio is -2.0, expected a number above 0"),
        ({**SMALL, "ffn_ratio": 0.1}, ValueError, "ffn_ratio is 0.1, .*at least 8 of the embed_dims"),
        ({**SMALL, "gate": None}, TypeError, "gate is None, expected True or False"),
        ({**SMALL, "conv_bias": 1}, TypeError, "conv_bias is 1, expected True or False"),
    ],
)
def test_bad_archs(arch, error, message):
    """One sentence, which names the setting, its value, and what it may be."""
    with pytest.raises(error, match=message) as raised:
        resolve(arch)
    assert "\n" not in str(raised.value)
    assert re.match("MSVMamba: |arch: ", str(raised.value))


def test_names_are_those_of_the_backbone():
    with pytest.raises(
        ValueError, match="VMamba: there is no arch 'nano'; choose one of tiny, small, base, v2_tiny_s1l8"
    ):
        VMamba("nano")
    with pytest.raises(
        ValueError, match="VMamba: there is no arch 'nano'; choose one of tiny, small, base, v2_tiny_s1l8"
    ):
        VMamba({"base": "nano"})


@pytest.mark.parametrize(
    ("blocks", "error"), [(None, TypeError), (({},), TypeError), ("b", TypeError), ((), ValueError)]
)
def test_bad_blocks(blocks, error):
    """Of an Arch that a user makes."""
    with pytest.raises(error, match=r"^arch: .*(blocks|stages)"):
        Arch((16,), (1,), blocks)
