"""Every config builds its model in full size, its parts fit together, and its recipe is the one that its name says."""

import re
from functools import cache

import pytest
import torch
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from tests.processes import run_code
from tests.test_engine.small_runs import CONFIG, SMALL, small_classifier, small_run

from .zoo import ARCHS, CONFIGS, ROOT, build, load, name

CROSS_SCAN = {"base": "nano", "full_routes": ("row", "col", "row_rev", "col_rev"), "half_routes": ()}
# On the bundled photographs, and their archs.
BUNDLED = {
    "mask_rcnn/msvmamba_n_coco_mini": "nano",
    "upernet/msvmamba_n_coco_mini": "nano",
    "cls/msvmamba_n_clothing_mini": "nano",
    "cls/msvmamba_n_ss2d_clothing_mini": CROSS_SCAN,
}
# Recipe: epochs or iterations, batch size, learning rate, weight decay.
RECIPES = {
    "mask_rcnn/*_1x": (12, 32, 1e-4, 0.05),
    "mask_rcnn/*_3x": (36, 32, 1e-4, 0.05),
    "cascade_mask_rcnn/*_cascade_3x": (36, 16, 1e-4, 0.05),
    "upernet/*_160k": (160000, 16, 6e-5, 0.01),
    "upernet/*_160k_ms": (160000, 16, 6e-5, 0.01),
    "upernet/*_160k_640": (160000, 16, 6e-5, 0.01),
    "upernet/*_160k_640_ms": (160000, 16, 6e-5, 0.01),
    "upernet/*_cityscapes_80k": (80000, 8, 6e-5, 0.01),
    "cls/*_300e": (300, 1024, 1e-3, 0.05),
    "cls/*_384": (30, 1024, 1e-5, 1e-8),
}
# Schedule: the warm-up's end, and what follows, with what it is called and has. Pipeline: what it augments by.
RANDOM_CROP = ["RandomResizedCrop", "RandomFlip"]
SWIN_SEGMENTATION = ["RandomResize", "RandomCrop", "RandomFlip", "PhotoMetricDistortion"]
SCHEDULES = {
    "1x": (1000, ("MultiStepLR", "milestones", [8, 11]), ["Resize", "RandomFlip"]),
    "3x": (1000, ("MultiStepLR", "milestones", [27, 33]), ["RandomFlip", "RandomChoice"]),
    "160k": (1500, ("PolyLR", "end", 160000), SWIN_SEGMENTATION),
    "80k": (1500, ("PolyLR", "end", 80000), SWIN_SEGMENTATION),
    "300e": (20, ("CosineAnnealingLR", "convert_to_iter_based", True), [*RANDOM_CROP, "RandAugment", "RandomErasing"]),
    "384": (None, None, RANDOM_CROP),
}
# Those that are not there for every size.
WITH_DENSE = [size for size in ARCHS if not size.endswith("_s1l20")]
TRAINED_AT_384 = [size for size in WITH_DENSE if not size.startswith("vmamba_v1") and size != "vmamba_t_s2l5"]
SIZES = {
    "mask_rcnn/*_1x": WITH_DENSE,
    "mask_rcnn/*_3x": WITH_DENSE,
    "upernet/*_160k": WITH_DENSE,
    "upernet/*_160k_ms": WITH_DENSE,
    "cls/*_384": TRAINED_AT_384,
    "cascade_mask_rcnn/*_cascade_3x": ("msvmamba_t", "msvmamba_v3_s"),
    "upernet/*_160k_640": ("msvmamba_v3_s",),
    "upernet/*_160k_640_ms": ("msvmamba_v3_s",),
    "upernet/*_cityscapes_80k": ("msvmamba_t",),
}
# Drop path of each size: detection, segmentation, classification. Fine-tuning at 384 x 384 has 0.1 for all.
DROP_PATH = {
    "msvmamba_n": (0.2, 0.3, 0.2),
    "msvmamba_m": (0.2, 0.3, 0.2),
    "msvmamba_t": (0.2, 0.2, 0.2),
    "msvmamba_v3_t": (0.2, 0.3, 0.2),
    "msvmamba_v3_s": (0.2, 0.3, 0.4),
    "msvmamba_v3_b": (0.2, 0.3, 0.5),
    "vmamba_v1_t": (0.2, 0.2, 0.1),
    "vmamba_v1_s": (0.2, 0.2, 0.3),
    "vmamba_v1_b": (0.2, 0.2, 0.6),
    "vmamba_t": (0.2, 0.2, 0.2),
    "vmamba_s": (0.3, 0.3, 0.3),
    "vmamba_b": (0.6, 0.6, 0.6),
    "vmamba_t_s2l5": (0.2, 0.2, 0.2),
    "vmamba_s_s1l20": (None, None, 0.3),
    "vmamba_b_s1l20": (None, None, 0.6),
}
# Config: its recipe and its size.
ZOO = {recipe.replace("*", size): (recipe, size) for recipe in RECIPES for size in SIZES.get(recipe, ARCHS)}


@pytest.fixture(scope="module", params=CONFIGS, ids=name)
def loaded(request) -> tuple[str, Config]:
    return name(request.param), load(request.param)


@pytest.fixture
def built(loaded) -> tuple[str, Config, nn.Module]:
    return *loaded, build(loaded[1])


def test_all_configs_are_there():
    assert {name(path) for path in CONFIGS} == BUNDLED.keys() | ZOO.keys()


@pytest.mark.slow
def test_backbone_is_the_one_in_the_name(built):
    config, cfg, model = built
    size = ZOO[config][1] if config in ZOO else "msvmamba_n"
    assert type(model.backbone).__name__ == ("VMamba" if size.startswith("vmamba") else "MSVMamba")
    assert cfg.model.backbone.arch == (ARCHS[size] if config in ZOO else BUNDLED[config])
    # No weights of another backbone are left from the recipe that was inherited.
    assert cfg.model.backbone.get("init_cfg") is None
    assert cfg.model.get("pretrained") is None


def test_recipe_is_the_one_in_the_name(loaded):
    config, cfg = loaded
    if config in BUNDLED:
        assert "auto_scale_lr" not in cfg  # one process, and a batch of its own
        return
    recipe, size = ZOO[config]
    length, batch_size, learning_rate, decay = RECIPES[recipe]
    if recipe.startswith("mask_rcnn") and size.startswith("vmamba"):
        batch_size = 16
    if config == "cls/msvmamba_v3_b_300e":
        learning_rate = 6e-4
    assert cfg.train_cfg.get("max_epochs", cfg.train_cfg.get("max_iters")) == length
    assert cfg.optim_wrapper.get("type", "OptimWrapper") == "OptimWrapper"
    assert cfg.optim_wrapper.optimizer.type == "AdamW"
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(learning_rate)
    assert cfg.optim_wrapper.optimizer.weight_decay == decay
    # The learning rate is for a whole number of GPUs, and is scaled for others only when asked.
    assert cfg.auto_scale_lr.base_batch_size == batch_size
    assert not cfg.auto_scale_lr.get("enable", False)
    assert batch_size // cfg.train_dataloader.batch_size == {8: 4, 16: 8, 32: 8, 1024: 16}[batch_size]
    assert "find_unused_parameters" not in cfg
    assert "custom_imports" not in cfg or cfg.custom_imports is None
    task = ("mmdet", "mmseg", "mmpretrain").index(cfg.default_scope)
    assert cfg.model.backbone.drop_path_rate == (0.1 if recipe.endswith("384") else DROP_PATH[size][task])


def test_schedule_and_augmentation_are_those_of_the_recipe(loaded):
    config, cfg = loaded
    if config in BUNDLED:
        return
    (length,) = (part for part in ZOO[config][0].split("_") if part in SCHEDULES)
    warm_up, then, augmentation = SCHEDULES[length]
    schedule = cfg.param_scheduler
    assert [step.end for step in schedule[:1]] == ([warm_up] if warm_up else [])
    assert [(step.type, then[1], step.get(then[1])) for step in schedule[1:]] == ([then] if then else [])
    steps = [step.type for step in cfg.train_pipeline]
    assert [step for step in steps if not step.startswith(("Load", "Pack"))] == augmentation
    if length == "300e":
        assert cfg.optim_wrapper.clip_grad.max_norm == 5.0
        assert cfg.model.head.loss.label_smooth_val == 0.1
        assert [(mix.type, mix.alpha) for mix in cfg.model.train_cfg.augments] == [("Mixup", 0.8), ("CutMix", 1.0)]
        # The learning rate rises from 1e-6 and falls to a hundredth of its highest value.
        assert schedule[0].start_factor * cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-6)
        assert schedule[1].eta_min == pytest.approx(cfg.optim_wrapper.optimizer.lr / 100)
        assert cfg.train_dataloader.drop_last


@pytest.mark.slow
def test_neck_and_heads_take_its_maps(built):
    _, cfg, model = built
    {"mmdet": _detect, "mmseg": _segment, "mmpretrain": _classify}[cfg.default_scope](model)


IMAGE = torch.empty(1, 3, 64, 96, device="meta")


# Configs with the same model share it.
@cache
@torch.no_grad()
def _classify(model: nn.Module) -> None:
    assert model.eval()(IMAGE).shape == (1, model.head.num_classes)


@cache
@torch.no_grad()
def _segment(model: nn.Module) -> None:
    maps = model.eval().extract_feat(IMAGE)
    classes = model.decode_head.num_classes
    assert model.decode_head(maps).shape == (1, classes, 16, 24)
    assert model.auxiliary_head(maps).shape == (1, classes, 4, 6)


@cache
@torch.no_grad()
def _detect(model: nn.Module) -> None:
    maps = model.eval().extract_feat(IMAGE)
    assert [tuple(x.shape[2:]) for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert len(model.rpn_head(maps)[0]) == 5
    roi = model.roi_head
    for extractor, head in zip(_listed(roi.bbox_roi_extractor), _listed(roi.bbox_head), strict=True):
        regions = torch.empty(1, maps[0].shape[1], 7, 7, device="meta")
        assert extractor.out_channels == regions.shape[1]
        scores, _ = head(regions if head.num_shared_convs else regions.flatten(1))
        assert scores.shape == (1, 81)
    for extractor, head in zip(_listed(roi.mask_roi_extractor), _listed(roi.mask_head), strict=True):
        regions = torch.empty(1, maps[0].shape[1], 14, 14, device="meta")
        assert extractor.out_channels == regions.shape[1]
        assert head(regions).shape == (1, 80, 28, 28)


def _listed(part: nn.Module) -> list[nn.Module]:
    return list(part) if isinstance(part, nn.ModuleList) else [part]


@pytest.mark.slow
def test_what_decays_is_what_decays_in_the_official_recipe(built):
    """Classifiers spare norms, biases and skip weights; the others what is named a norm in the authors' code."""
    _, cfg, model = built
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decay = {id(param): group["weight_decay"] for group in groups for param in group["params"]}
    norms = {name for name, module in model.backbone.named_modules() if isinstance(module, nn.LayerNorm)}
    weights = dict(model.backbone.named_parameters())
    if cfg.default_scope == "mmpretrain":
        spared = {name for name in weights if name.endswith((".bias", ".skip"))}
    else:
        named = {name for name in norms if name.startswith("stem.") or ".downsample." in name}
        norms -= {name for name in named if model.backbone.arch.downsample == "conv" or name.startswith("stem.")}
        spared = {f"{name}.bias" for name in norms}
    spared |= {f"{name}.weight" for name in norms}
    assert {name for name, param in weights.items() if decay[id(param)] == 0} == spared
    expected = cfg.optim_wrapper.optimizer.weight_decay
    assert expected > 0
    assert {decay[id(param)] for param in weights.values()} == {0, expected}


STOCK_INIT = [
    {"type": "TruncNormal", "layer": "Linear", "std": 0.02, "bias": 0.0},
    {"type": "Constant", "layer": "LayerNorm", "val": 1.0, "bias": 0.0},
]


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
def test_step_sizes_survive_the_initialisation_of_a_classifier(stock):
    """Also with the rule for all linear layers that mmpretrain's classifiers bring along."""
    cfg = Config.fromfile(ROOT / "configs/cls/msvmamba_n_300e.py")
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


def test_data_and_checkpoints_are_checked(loaded):
    _, cfg = loaded
    assert all(cfg[f"{stage}_cfg"].type.startswith("mmmsv.") for stage in ("train", "val", "test"))
    assert cfg.default_hooks.checkpoint.type == "mmmsv.CheckpointHook"
    assert {"mmmsv.ChannelFitHook", "mmmsv.CheckpointFitHook", "mmmsv.SeedEpochHook"} <= {
        hook.type for hook in cfg.custom_hooks
    }
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    assert {loader.dataset.type for loader in loaders} == set(cfg.data_source)


def test_moving_average_is_kept_where_classifiers_are_trained(loaded):
    config, cfg = loaded
    average = [hook.momentum for hook in cfg.custom_hooks if hook.type == "EMAHook"]
    assert average == ([1e-4] if config.endswith("_300e") and config != "cls/vmamba_v1_t_300e" else [])


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_no_absolute_path(path):
    source = "".join(file.read_text() for file in [path, *(ROOT / "configs/_base_").glob("*.py")])
    assert not re.findall(r"""['"](/|~|[A-Za-z]:\\)""", source)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["mmdet", "mmseg", "mmpretrain"])
def test_name_resolves_without_custom_imports(library):
    # A process of its own: here mmmsv is imported already.
    program = (
        f"from {library}.registry import MODELS; from {library}.utils import register_all_modules;"
        "register_all_modules(init_default_scope=True);"
        "print(type(MODELS.build(dict(type='mmmsv.MSVMamba', arch='nano'))).__module__)"
    )
    run = run_code(program)
    assert run.status == 0, run.output
    assert run.output.split()[-1] == "mmmsv.models.msvmamba"


def test_one_epoch_is_enough(tmp_path):
    """The bundled schedules may be cut short, as for a first try."""
    runner = small_classifier(tmp_path, param_scheduler=Config.fromfile(CONFIG).param_scheduler)
    runner.train()
    assert runner.epoch == 1


@pytest.mark.slow
@pytest.mark.parametrize("library", ["mmdet", "mmseg", "mmpretrain"])
def test_every_parameter_gets_a_gradient(tmp_path, library):
    """So that distributed training needs no ``find_unused_parameters``; nor does SyncBN touch the backbone."""
    runner = small_run(SMALL / f"{library}.py", tmp_path)
    model = runner.model
    data = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    loss, _ = model.parse_losses(model(**model.data_preprocessor(data, True), mode="loss"))
    loss.backward()
    assert [name for name, param in model.named_parameters() if param.requires_grad and param.grad is None] == []

    before = [type(module) for module in model.backbone.modules()]
    assert [type(module) for module in convert_sync_batchnorm(model, "torch").backbone.modules()] == before
