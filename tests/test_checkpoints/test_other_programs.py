"""Weights of ours in files of other programs: under other entries, with wrappers in their names, as safetensors."""

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmpretrain.registry import MODELS
from torch import nn

from mmmsv.checkpoint_loaders import arrange, register_loaders
from mmmsv.checkpoints.conversion import from_authors_file, to_authors_file
from mmmsv.engine import CheckpointFitHook
from mmmsv.models import MSVMamba
from mmmsv.weight_names import rename, without_wrappers
from tests.test_engine.small_runs import small_classifier

from .test_initializer import initialize, loaded

SMALL = {"embed_dims": (8, 16), "depths": (1, 2)}


def put_before(names):
    return lambda weights: {f"{names}{name}": value for name, value in weights.items()}


def averaged(weights):
    return {"n_averaged": torch.tensor(3), **put_before("module.")(weights)}


def compiled_inside(weights):
    return {name.replace("stages.1.", "stages.1._orig_mod."): value for name, value in weights.items()}


FORMS = {
    "compiled": put_before("_orig_mod."),
    "compiled, then parallel": put_before("module._orig_mod."),
    "parallel, then compiled": put_before("_orig_mod.module."),
    "a part compiled": compiled_inside,
    "FSDP": put_before("_fsdp_wrapped_module."),
    "AveragedModel": averaged,
    "MMEngine's average": lambda weights: {
        "ema_state_dict": {"steps": torch.tensor(1), **put_before("module.")(weights)}
    },
    "model": lambda weights: {"model": weights, "epoch": 3},
    "model_state_dict": lambda weights: {"model_state_dict": weights, "optimizer_state_dict": {"state": {}}},
    "model_ema": lambda weights: {"model_ema": weights, "model": {name: value + 1 for name, value in weights.items()}},
    "ema": lambda weights: {"ema": averaged(weights), "model": {name: value + 1 for name, value in weights.items()}},
    "timm": lambda weights: {"state_dict": put_before("module.")(weights), "arch": "msvmamba", "epoch": 3},
    "DeepSpeed": lambda weights: {"module": weights, "ds_version": "0.15", "optimizer": None},
    "another entry": lambda weights: {"net": weights, "loss": torch.tensor(1.0)},
    "entry in an entry": lambda weights: {"state": {"weights": put_before("_orig_mod.")(weights)}, "step": 5},
    "Lightning": lambda weights: {
        "state_dict": put_before("model.")(weights),
        "pytorch-lightning_version": "2.4.0",
        "optimizer_states": [{"state": {}}],
    },
}


@pytest.fixture
def weights():
    """Of a backbone, all ones."""
    return {name: torch.full_like(value, 0.5) for name, value in MSVMamba(SMALL).state_dict().items()}


def assert_loaded(model, weights):
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
class TestForms:
    def test_pretrained(self, weights, form, tmp_path):
        path = str(tmp_path / "file.pth")
        torch.save(form(weights), path)
        model = MSVMamba(SMALL, init_cfg={"type": "Pretrained", "checkpoint": path})
        model.init_weights()
        assert_loaded(model, weights)

    def test_pretrained_with_prefix(self, weights, form, tmp_path):
        path = str(tmp_path / "file.pth")
        torch.save(form({**put_before("backbone.")(weights), "head.fc.weight": torch.ones(1)}), path)
        model = MSVMamba(SMALL, init_cfg={"type": "Pretrained", "checkpoint": path, "prefix": "backbone."})
        model.init_weights()
        assert_loaded(model, weights)

    def test_a_model_around(self, weights, form, tmp_path):
        path = str(tmp_path / "file.pth")
        torch.save(form({**put_before("backbone.")(weights), "head.weight": torch.ones(2, 2)}), path)
        model = nn.Module()
        model.backbone, model.head = MSVMamba(SMALL), nn.Linear(2, 2, bias=False)
        load_checkpoint(model, path)
        assert_loaded(model.backbone, weights)
        assert (model.head.weight == 1).all()

    def test_plain(self, weights, form):
        given = form(weights)
        names = list(given)
        model = MSVMamba(SMALL)
        model.load_state_dict(given)
        assert_loaded(model, weights)
        assert list(given) == names  # the caller's own dict is as it was

    def test_authors(self, authors, form, weights):
        model = initialize(authors.model(out_indices=(3,)), authors.save(form(authors.weights)))
        assert loaded(model, authors.weights) == model.state_dict().keys()

    def test_converter(self, authors, form, weights):
        ours, _ = from_authors_file(authors.save({"model": authors.weights}))
        theirs, _ = to_authors_file(authors.save(form(ours["state_dict"])))
        assert all(torch.equal(theirs["model"][name], value) for name, value in authors.weights.items())


def test_models_with_a_compiled_part(weights):
    """They take plain weights and their own."""
    part = MSVMamba(SMALL)
    part.stages[1] = nn.ModuleDict({"_orig_mod": part.stages[1]})  # as torch.compile does
    part.load_state_dict(weights)
    assert all((value == 0.5).all() for value in part.state_dict().values())
    part.load_state_dict({name: value + 1 for name, value in part.state_dict().items()})
    assert all((value == 1.5).all() for value in part.state_dict().values())


# Files with several sets of weights, of which the first that are given are meant.
SEVERAL = {
    "timm": lambda right, wrong: {"state_dict": wrong, "state_dict_ema": right, "epoch": 3},
    "torchvision": lambda right, wrong: {"model": wrong, "model_ema": averaged(right)},
    "MMEngine": lambda right, wrong: {"state_dict": right, "ema_state_dict": wrong, "meta": {}},
    "MMEngine, published": lambda right, wrong: {"state_dict": right, "ema_state_dict": wrong},
    "MMEngine with another entry": lambda right, wrong: {"state_dict": right, "model_ema": wrong, "meta": {}},
    "best": lambda right, wrong: {"model_state_dict": right, "best": {"model": wrong}},
    "within model": lambda right, wrong: {"model": {"state_dict": right}, "teacher": {"model_ema": wrong}},
    "within ema": lambda right, wrong: {"ema": {"module": right}, "model": wrong},
    "moments": lambda right, wrong: {"net": right, "optimizer": {"model": wrong}, "optim_g": {"exp_avg": wrong}},
}


@pytest.mark.parametrize("form", SEVERAL.values(), ids=SEVERAL)
class TestSeveral:
    """All ways to load take the same of several."""

    def test_plain(self, weights, form):
        model = MSVMamba(SMALL)
        model.load_state_dict(form(weights, {name: value + 1 for name, value in weights.items()}))
        assert_loaded(model, weights)

    def test_file(self, weights, form, tmp_path):
        torch.save(form(weights, {name: value + 1 for name, value in weights.items()}), tmp_path / "file.pth")
        model = MSVMamba(SMALL)
        load_checkpoint(model, str(tmp_path / "file.pth"))
        assert_loaded(model, weights)

    def test_authors(self, authors, form):
        wrong = {name: value + 1 for name, value in authors.weights.items()}
        model = initialize(authors.model(out_indices=(3,)), authors.save(form(authors.weights, wrong)))
        assert loaded(model, authors.weights) == model.state_dict().keys()


def test_a_dict_inside_itself(weights):
    content = {"net": weights}
    content["me"] = content
    assert arrange(content)["state_dict"] is weights
    foreign = {"w": torch.ones(1)}
    foreign["me"] = foreign
    assert arrange(foreign) is foreign


def test_a_backbone_elsewhere(weights, tmp_path, log):
    """In a file with a whole model under another name; the log names it, and the message how to load it."""
    torch.save({"model": put_before("model.backbone.")(weights)}, tmp_path / "file.pth")
    model = nn.ModuleDict({"backbone": MSVMamba(SMALL)})
    with pytest.raises(ValueError, match=r"It holds nothing at 'backbone\.': .* prefix='model\.backbone\.'\)"):
        load_checkpoint(model, str(tmp_path / "file.pth"))
    assert "of the checkpoint, model is loaded, with a backbone at model.backbone." in log
    init_cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "file.pth"), "prefix": "model.backbone."}
    model = MSVMamba(SMALL, init_cfg=init_cfg)
    model.init_weights()
    assert_loaded(model, weights)


def test_the_log_says_which_entry(weights, tmp_path, log):
    content = {"model": weights, "model_ema": weights}
    MSVMamba(SMALL).load_state_dict(content)
    torch.save(content, tmp_path / "file.pth")
    load_checkpoint(MSVMamba(SMALL), str(tmp_path / "file.pth"))
    assert [line for line in log if line.startswith("of the")] == ["of the checkpoint, model_ema is loaded"] * 2


def test_what_others_wrote_is_left_alone():
    """Files of other models, of MMEngine itself, and what may be the name of a part of a model."""
    weights = {f"backbone.{name}": value for name, value in MSVMamba(SMALL).state_dict().items()}
    for content in (
        [weights],
        {"model": nn.Linear(2, 2).state_dict()},
        {"state_dict": put_before("_orig_mod.")(weights), "meta": {}},
        {"state_dict": put_before("architecture.")(weights)},
        put_before("architecture.")(weights),
        weights,
        {"student": weights, "teacher": weights},
    ):
        assert arrange(content) is content


def test_a_loader_of_somebody_else(weights, monkeypatch):
    """It is still asked where this package comes after it, and for what it gives our weights are found."""
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))

    @CheckpointLoader.register_scheme("", force=True)
    def load_from_mine(filename, map_location=None):
        return {"model": weights, "given": (filename, map_location)}

    register_loaders()
    loaded = CheckpointLoader.load_checkpoint("somewhere", map_location="cpu")
    assert loaded["state_dict"] is weights
    assert loaded["given"] == ("somewhere", "cpu")


def test_names():
    assert without_wrappers({"n_averaged": 0, "module._orig_mod.stem.x": 1}) == {"stem.x": 1}
    for names in ({"steps": 0, "stem.x": 1}, {"model.stem.x": 1, "loss.x": 2}, {"stages.0.x": 1}, {3: 4}, {}):
        assert without_wrappers(names) is names
    # A part of a model that has the name of a wrapper, on either side.
    around = {"module.backbone.stem.x", "module.head.x"}
    assert rename({"backbone.stem.x": 1, "head.x": 2, "y": 3}, around) == {
        "module.backbone.stem.x": 1,
        "module.head.x": 2,
        "y": 3,
    }
    assert rename({"backbone.module.stem.x": 1}, {"backbone.module.stem.x"}) == {"backbone.module.stem.x": 1}


class TestRuns:
    """MMEngine's own files, read by a runner whose model has other wrappers."""

    def load(self, tmp_path, state_dict, **settings):
        path = tmp_path / "file.pth"
        torch.save({"state_dict": state_dict, "meta": {"epoch": 0, "iter": 0}}, path)
        runner = small_classifier(tmp_path, load_from=str(path), **settings)
        runner.load_checkpoint(str(path))
        return runner.model

    @pytest.mark.parametrize("form", ["compiled", "parallel, then compiled", "a part compiled", "FSDP"])
    def test_wrapped(self, tmp_path, form):
        weights = {n: torch.full_like(v, 0.5) for n, v in small_classifier(tmp_path).model.state_dict().items()}
        assert_loaded(self.load(tmp_path, FORMS[form](weights)), weights)

    def test_adapters_around_a_model(self, tmp_path):
        """LoRAModel calls it ``module``, and MMEngine takes a ``module.`` off."""
        runner = small_classifier(tmp_path)
        lora = {"type": "LoRAModel", "_scope_": "mmpretrain", "rank": 2, "targets": [{"type": "in_proj"}]}
        runner.model = MODELS.build({**lora, "module": runner.cfg.model})
        weights = {name: torch.full_like(value, 0.5) for name, value in runner.model.state_dict().items()}
        torch.save({"state_dict": weights, "meta": {}}, tmp_path / "adapters.pth")
        runner.load_checkpoint(str(tmp_path / "adapters.pth"))
        assert_loaded(runner.model, weights)

    def test_no_weights(self, tmp_path):
        runner = small_classifier(tmp_path)
        for content, kind in ([1], "list"), ({"state_dict": None}, "NoneType"):
            with pytest.raises(ValueError, match=f"this checkpoint holds a {kind}, expected weights by name"):
                CheckpointFitHook().after_load_checkpoint(runner, content)

    def test_weights_without_a_run(self, tmp_path):
        weights = small_classifier(tmp_path).model.state_dict()
        torch.save({"model_state_dict": weights}, tmp_path / "weights.pth")
        runner = small_classifier(tmp_path, load_from=str(tmp_path / "weights.pth"), resume=True)
        with pytest.raises(
            ValueError, match="holds weights and not the state of a run, so none can be resumed from it"
        ):
            runner.train()


# What is given to a backbone, and what the message advises.
ADVICE = {
    "whole model": (put_before("backbone."), r"It holds a whole model: load its backbone with prefix='backbone\.'$"),
    "two models": (
        lambda weights: {**put_before("student.")(weights), **put_before("teacher.")(weights)},
        r"It holds a whole model: load its backbone with prefix='student\.' or prefix='teacher\.'$",
    ),
    "two entries": (
        lambda weights: {"student": weights, "teacher": weights},
        r"^the checkpoint holds the weights of 2 models \(student, teacher\), and nothing was loaded: load those of",
    ),
    "two entries, one of them in another": (
        lambda weights: {"student": weights, "teacher": {"model": weights}},
        r"^the checkpoint holds the weights of 2 models \(student, teacher\.model\), and nothing was loaded: load",
    ),
    "moments": (
        lambda weights: {"optimizer": {"exp_avg": weights}, "epoch": 3},
        r"It holds no weights, but optimizer, epoch: give a file that holds the model's state_dict\(\)$",
    ),
    "Lightning with a loss": (
        lambda weights: {"state_dict": {**put_before("net.")(weights), "loss.weight": torch.ones(1)}},
        r"It holds a whole model: load its backbone with prefix='net\.'$",
    ),
    "optimizer": (
        lambda _: {"optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}, "epoch": 3},
        r"It holds no weights, but optimizer, epoch: give a file that holds the model's state_dict\(\)$",
    ),
    "other model": (
        lambda _: {"layer1.weight": torch.ones(1)},
        "It is of another kind of model, or lacks the blocks$",
    ),
    "a tensor is missing": (
        lambda weights: {name: v for name, v in weights.items() if name != "stages.1.blocks.0.scan.out_norm.weight"},
        "1 missing: stages.1.blocks.0.scan.out_norm.weight. It is incomplete, or was changed after it was written",
    ),
    "a tensor of the stem is missing": (
        lambda weights: {name: value for name, value in weights.items() if name != "stem.conv.bias"},
        "1 missing: stem.conv.bias. It is incomplete, or was changed after it was written: get it again$",
    ),
    "no tensor": (
        lambda weights: {**weights, "stem.conv.bias": [1.0]},
        "1 no tensors: stem.conv.bias. It is incomplete, or was changed after it was written: get it again$",
    ),
    "head": (
        lambda weights: {**weights, "head.fc.weight": torch.ones(1)},
        "1 unexpected: head.fc.weight. Take out of it what is not of the backbone$",
    ),
    "other depth": (
        lambda _: MSVMamba({"embed_dims": (8, 16), "depths": (1, 3)}).state_dict(),
        "unexpected: stages.1.blocks.2.norm1.weight, .*Give the arch that the checkpoint was made with$",
    ),
    "other width": (
        lambda _: MSVMamba({"embed_dims": (16, 32), "depths": (1, 2)}).state_dict(),
        "of another shape: .*Give the arch that the checkpoint was made with$",
    ),
    "other layers": (
        lambda _: MSVMamba({**SMALL, "se": False, "ffn": "none"}).state_dict(),
        "missing: .*Give the arch that the checkpoint was made with$",
    ),
    "other stem": (
        lambda _: MSVMamba({**SMALL, "stem": "conv"}).state_dict(),
        "missing: .*Give the arch that the checkpoint was made with$",
    ),
    "nothing": (lambda _: {}, "It holds nothing for this backbone. If it is a file of the authors of .*convert_check"),
    "authors, in an entry": (
        lambda _: {"model": {"layers.0.blocks.0.op.Ds": torch.ones(1)}},
        "It has the names of the authors of MSVMamba and VMamba: give it as authors://PATH, as in --check",
    ),
}


@pytest.mark.parametrize(("change", "message"), ADVICE.values(), ids=ADVICE)
def test_advice(weights, change, message):
    model = MSVMamba(SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(change(weights), strict=False)
    assert_loaded(model, before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("how", [None, "average"])
def test_numbers_that_are_no_weights(weights, dtype, how):
    model = MSVMamba(SMALL, in_channels=5 if how else 3, adapt_in_channels=how)
    with pytest.raises(ValueError, match=f"^the checkpoint holds {dtype} in stem.conv.weight, .* has floating point; "):
        model.load_state_dict({name: value.to(dtype) for name, value in weights.items()})


@pytest.mark.parametrize("turned", [False, True])
def test_two_names_that_are_one(weights, turned):
    files = [weights, put_before("_orig_mod.")(weights)]
    both = {name: value for file in (files[::-1] if turned else files) for name, value in file.items()}
    message = r"^the checkpoint holds .*stem.conv.weight and .*stem.conv.weight, which are one weight without what wrap"
    for load in (MSVMamba(SMALL).load_state_dict, arrange):
        with pytest.raises(ValueError, match=message):
            load(both)


def test_authors_checkpoint_of_several_models(authors):
    path = authors.save({"student": authors.weights, "teacher": authors.weights})
    with pytest.raises(
        ValueError, match=r"holds the weights of 2 models \(student, teacher\); save those of one in a file"
    ):
        initialize(authors.model(), path)
