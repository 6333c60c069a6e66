"""Every config builds its model in full size, its parts fit together, and its optimizer decays what it should."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmsv.models import MSVMamba

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (REPOSITORY / "configs").glob("*/*.py") if path.parent.name != "_base_")
ARCHS = {"n": "nano", "m": "micro", "t": "tiny", "v3_t": "v3_tiny", "v3_s": "v3_small", "v3_b": "v3_base"}
DROP_PATH = {
    **{f"mask_rcnn/msvmamba_{size}_{schedule}": 0.1 for size in "nmt" for schedule in ("1x", "3x")},
    **{f"upernet/msvmamba_{size}_160k": rate for size, rate in zip("nmt", (0.1, 0.1, 0.2), strict=True)},
    **{f"cls/msvmamba_{size}_300e": 0.2 for size in ("n", "m", "t", "v3_t")},
    "cls/msvmamba_v3_s_300e": 0.4,
    "cls/msvmamba_v3_b_300e": 0.5,
}


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module", params=CONFIGS, ids=_name)
def built(request) -> tuple[str, Config, nn.Module]:
    cfg = Config.fromfile(request.param)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    return _name(request.param), cfg, MODELS.build(cfg.model)


def test_all_configs_are_there():
    bundled = {"mask_rcnn/msvmamba_n_coco_mini", "upernet/msvmamba_n_coco_mini", "cls/msvmamba_n_clothing_mini"}
    assert {_name(path) for path in CONFIGS} == bundled | DROP_PATH.keys()


def test_backbone_is_the_one_in_the_name(built):
    name, cfg, model = built
    assert type(model.backbone) is MSVMamba
    assert cfg.model.backbone.arch == ARCHS[re.search(r"msvmamba_((v3_)?[nmtsb])_", name)[1]]
    if name in DROP_PATH:
        assert cfg.model.backbone.drop_path_rate == DROP_PATH[name]
    # No weights of another backbone are left from the recipe that was inherited.
    assert cfg.model.backbone.get("init_cfg") is None


@torch.no_grad()
def test_neck_and_heads_take_its_maps(built):
    _, cfg, model = built
    model.eval()
    image = torch.rand(1, 3, 64, 96)
    if cfg.default_scope == "mmpretrain":
        assert model(image).shape == (1, cfg.model.head.num_classes)
    elif cfg.default_scope == "mmseg":
        classes = cfg.model.decode_head.num_classes
        assert model(image).shape == (1, classes, 16, 24)
        assert model.auxiliary_head(model.extract_feat(image)).shape == (1, classes, 4, 6)
    else:
        maps = model.extract_feat(image)
        assert [tuple(x.shape[2:]) for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
        assert len(model.rpn_head(maps)[0]) == 5
        rois = torch.tensor([[0.0, 4.0, 4.0, 60.0, 60.0]])
        scores, _ = model.roi_head.bbox_head(model.roi_head.bbox_roi_extractor(maps[:4], rois).flatten(1))
        assert scores.shape == (1, cfg.model.roi_head.bbox_head.num_classes + 1)
        masks = model.roi_head.mask_head(model.roi_head.mask_roi_extractor(maps[:4], rois))
        assert masks.shape == (1, cfg.model.roi_head.mask_head.num_classes, 28, 28)


def test_norms_decay_rates_and_skips_are_not_decayed(built):
    _, cfg, model = built
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(param): group["weight_decay"] for group in groups for param in group["params"]}

    spared = {
        f"{name}.{part}"
        for name, module in model.backbone.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    names = [name for name, _ in model.backbone.named_parameters()]
    spared |= {name for name in names if name.endswith((".A_log", ".skip"))}
    if cfg.default_scope == "mmpretrain":
        spared |= {name for name in names if name.endswith("bias")}
    assert {name for name, param in model.backbone.named_parameters() if decay[id(param)] == 0} == spared
    expected = cfg.optim_wrapper.optimizer.weight_decay
    assert expected > 0
    assert {decay[id(param)] for param in model.backbone.parameters()} == {0, expected}


STOCK_INIT = [
    {"type": "TruncNormal", "layer": "Linear", "std": 0.02, "bias": 0.0},
    {"type": "Constant", "layer": "LayerNorm", "val": 1.0, "bias": 0.0},
]


@pytest.mark.parametrize("stock", [False, True])
def test_step_sizes_survive_the_initialisation_of_a_classifier(stock):
    """Also with the rule for all linear layers that mmpretrain's classifiers bring along."""
    cfg = Config.fromfile(REPOSITORY / "configs/cls/msvmamba_n_300e.py")
    init_default_scope(cfg.default_scope)
    if stock:
        cfg.model.init_cfg = STOCK_INIT
    model = MODELS.build(cfg.model)
    scan = ("dt_weight", "dt_bias", "A_log", "skip")
    before = {name: value.clone() for name, value in model.backbone.state_dict().items() if name.endswith(scan)}
    model.init_weights()
    after = model.backbone.state_dict()
    assert len(before) == 2 * len(scan) * sum(model.backbone.arch.depths)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert 0.018 < model.head.fc.weight.std() < 0.022


def test_data_and_checkpoints_are_checked(built):
    _, cfg, _ = built
    assert all(cfg[f"{stage}_cfg"].type.startswith("mmmsv.") for stage in ("train", "val", "test"))
    assert {"mmmsv.CheckpointFitHook", "mmmsv.SeedEpochHook"} <= {hook.type for hook in cfg.custom_hooks}
    assert cfg.data_source


@pytest.mark.parametrize("path", CONFIGS, ids=_name)
def test_no_absolute_path(path):
    source = "".join(file.read_text() for file in [path, *(REPOSITORY / "configs/_base_").glob("*.py")])
    assert not re.findall(r"""['"](/|~|[A-Za-z]:\\)""", source)


@pytest.mark.parametrize("library", ["mmdet", "mmseg", "mmpretrain"])
def test_name_resolves_without_custom_imports(library):
    # A process of its own: here mmmsv is imported already.
    program = (
        f"from {library}.registry import MODELS; from {library}.utils import register_all_modules;"
        "register_all_modules(init_default_scope=True);"
        "print(type(MODELS.build(dict(type='mmmsv.MSVMamba', arch='nano'))).__module__)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == "mmmsv.models.msvmamba"
