"""Files of adapters load into a backbone with the same adapters, and torn ones are refused."""

import copy
from typing import ClassVar

import pytest
import torch
from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn.utils import parametrize, prune

from mmmsv.engine.hooks.checkpoint_fit import list_loading_mismatches
from mmmsv.models import MSVMamba
from tests.test_engine.small_runs import small_classifier
from tests.test_models.adapters import LowRank, NamedLowRank, TrainedCopy, adapt

SMALL = {"embed_dims": (8, 16), "depths": (1, 2)}
LAYERS = ("in_proj", "out_proj", "fc1")
HAS_TO_HOLD = "The backbone has adapters, so the file has to hold all of its weights, or those of the adapters, whole"


class Sum(nn.Module):
    """A low-rank sum to a weight, as a parametrization."""

    def __init__(self, weight):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.ones(2, weight.shape[1])), nn.Parameter(torch.ones(weight.shape[0], 2))

    def forward(self, weight):
        return weight + self.up @ self.down


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight", Sum(layer.weight))
    return layer


class Scale(nn.Module):
    """IA3: a vector for the outputs, which is a parameter by name, and nothing else."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.ia3_l = layer, nn.ParameterDict({"default": torch.ones(layer.out_features)})

    def forward(self, x):
        return self.base_layer(x) * self.ia3_l["default"]


def with_stem(layer):
    return TrainedCopy(layer) if hasattr(layer, "min_side") else NamedLowRank(layer)


# How a layer is wrapped, which layers, and whether a weight of these names is in the file.
WAYS = {
    "low rank": (LowRank, LAYERS, lambda name: ".down." in name or ".up." in name),
    "as peft": (NamedLowRank, LAYERS, lambda name: "lora_" in name),
    "rank of the layer": (lambda layer: NamedLowRank(layer, rank=layer.out_features), LAYERS, lambda n: "lora_" in n),
    "all biases": (NamedLowRank, LAYERS, lambda name: "lora_" in name or name.endswith(".bias")),
    "their biases": (NamedLowRank, LAYERS, lambda name: "lora_" in name or name.endswith("base_layer.bias")),
    "a vector": (Scale, LAYERS, lambda name: "ia3_l" in name),
    "a layer alone": (NamedLowRank, "stages.1.blocks.1.scan.in_proj", lambda name: "lora_" in name),
    "the stem as a whole": (with_stem, (*LAYERS, "stem"), lambda name: "lora_" in name or "modules_to_save" in name),
    "parametrization": (parametrized, LAYERS, lambda name: name.endswith((".0.down", ".0.up"))),
}


def adapted(way):
    wrap, layers, is_stored = WAYS[way]
    torch.manual_seed(0)
    model = adapt(MSVMamba(SMALL), wrap, layers)
    return model, {n: v.clone() for n, v in model.state_dict().items() if is_stored(n) and "out_norms" not in n}


@pytest.mark.parametrize("by_mmengine", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_adapters_alone(way, by_mmengine, tmp_path):
    model, stored = adapted(way)
    before = copy.deepcopy(model.state_dict())
    new = {name: torch.full_like(value, 0.25) for name, value in stored.items()}
    if by_mmengine:
        torch.save({"state_dict": new}, tmp_path / "adapters.pth")
        load_checkpoint(model, str(tmp_path / "adapters.pth"))
    else:
        assert list_loading_mismatches(model, new) == []
        model.load_state_dict(new)
    for name, value in model.state_dict().items():
        assert torch.equal(value, new.get(name, before[name]))
    model.load_state_dict(before)  # and all of it


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("way", WAYS)
def test_torn(way, frozen):
    """Each tensor of the file, and of one with all weights, is missed; also in a frozen copy."""
    model, stored = adapted(way)
    model.requires_grad_(not frozen)
    whole = {name: value for name, value in model.state_dict().items() if "out_norms" not in name}
    for weights in (stored, whole):
        for lost in weights:
            with pytest.raises(ValueError, match=f"{lost}.*{HAS_TO_HOLD}"):
                model.load_state_dict({name: value for name, value in weights.items() if name != lost}, strict=False)


def test_one_of_several_adapters():
    model = adapt(MSVMamba(SMALL), lambda layer: NamedLowRank(layer, ("default", "second")), LAYERS)
    second = {name: torch.ones_like(value) for name, value in model.state_dict().items() if "second" in name}
    model.load_state_dict(second, strict=False)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in second.items())
    second.popitem()
    with pytest.raises(ValueError, match=rf"nothing was loaded. 1 missing: .*second.weight\. {HAS_TO_HOLD}"):
        model.load_state_dict(second, strict=False)


def test_what_is_trained_beside_adapters():
    """Norms, in a file of all that gets a gradient."""
    model = adapt(MSVMamba(SMALL), NamedLowRank, LAYERS)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or "norm" in name)
    stored = {name: value.detach() + 1 for name, value in model.named_parameters() if value.requires_grad}
    assert list_loading_mismatches(model, model.state_dict()) == []
    model.load_state_dict(stored, strict=False)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in stored.items())
    stored.pop("stages.0.blocks.0.norm1.bias")
    for load in (lambda: model.load_state_dict(stored, strict=False), lambda: list_loading_mismatches(model, stored)):
        with pytest.raises(ValueError, match=f"1 missing: stages.0.blocks.0.norm1.bias. {HAS_TO_HOLD}"):
            load()


class Keyed(nn.Module):
    """An adapter whose two parts have names in a dict, which are no names of adapters."""

    def __init__(self, layer):
        super().__init__()
        down, up = nn.Linear(layer.in_features, 2, bias=False), nn.Linear(2, layer.out_features, bias=False)
        self.layer, self.parts = layer, nn.ModuleDict({"down": down, "up": up})


class Statistics(nn.Module):
    """An adapter beside a block, with buffers."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.norm = layer, nn.BatchNorm1d(4)


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("wrap", [NamedLowRank, LowRank, Statistics, pruned, parametrized])
def test_whole_kinds_are_lost(wrap, frozen):
    """No file of all weights may lack all that have one name: A_log, masks of pruning, statistics, ..."""
    model = adapt(MSVMamba(SMALL), wrap, LAYERS)
    model.requires_grad_(not frozen)
    whole = model.state_dict()
    leaves = {name.rpartition(".")[2] for name in whole}
    assert {"A_log", "dt_bias", "skip"} < leaves
    for lost in leaves:
        rest = {name: value for name, value in whole.items() if not name.endswith(f".{lost}")}
        with pytest.raises(ValueError, match=rf" missing: .*\.{lost}.*{HAS_TO_HOLD}"):
            model.load_state_dict(rest, strict=False)
    model.load_state_dict(whole)


@pytest.mark.parametrize("wrap", [Statistics, pruned])
def test_parameters_without_buffers(wrap):
    model = adapt(MSVMamba(SMALL), wrap, LAYERS)
    added = model.state_dict().keys() - model.built.keys()
    for names in (dict(model.named_parameters()).keys(), added & dict(model.named_parameters()).keys()):
        with pytest.raises(ValueError, match=f" missing: .*{HAS_TO_HOLD}"):
            model.load_state_dict({name: model.state_dict()[name] for name in names}, strict=False)


def test_half_of_parts_in_a_dict():
    model = adapt(MSVMamba(SMALL), Keyed, LAYERS)
    stored = {name: value for name, value in model.state_dict().items() if ".parts." in name}
    model.load_state_dict(stored, strict=False)
    with pytest.raises(ValueError, match=rf"9 missing: .*parts.up.*{HAS_TO_HOLD}"):
        model.load_state_dict({name: value for name, value in stored.items() if ".down." in name}, strict=False)


def test_parts_that_a_subclass_adds():
    model = MSVMamba(SMALL)
    model.extra = nn.Linear(4, 4)
    for lost in ("A_log", "dt_bias", "skip"):
        with pytest.raises(ValueError, match=f" missing: .*{lost}"):
            model.load_state_dict({n: v for n, v in model.state_dict().items() if not n.endswith(lost)}, strict=False)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("lost", ["lora_A", "lora_B"])
def test_half_of_each_adapter(lost, frozen):
    model, stored = adapted("as peft")
    model.requires_grad_(not frozen)
    with pytest.raises(ValueError, match=rf"9 missing: stages.0.blocks.0.scan.in_proj.{lost}.default.weight, .*whole"):
        model.load_state_dict({name: value for name, value in stored.items() if lost not in name}, strict=False)


def test_weights_of_another_shape():
    _, stored = adapted("as peft")
    other = adapt(MSVMamba(SMALL), lambda layer: NamedLowRank(layer, rank=3), LAYERS)
    with pytest.raises(ValueError, match=r"18 of another shape: .*\(\(2, 8\) in the checkpoint, \(3, 8\) in the model"):
        other.load_state_dict(stored, strict=False)


def test_a_model_with_fewer_layers_has_no_adapters():
    model = MSVMamba(SMALL)
    del model.stages[1]
    with pytest.raises(ValueError, match="missing"):
        model.load_state_dict({}, strict=False)


def test_with_adapters_on_one_side_only():
    model, stored = adapted("as peft")
    plain = MSVMamba(SMALL)
    with pytest.raises(ValueError, match=r" missing: .*lora_A.*are loaded before the adapters are put in") as error:
        model.load_state_dict({n: v for n, v in plain.state_dict().items() if not n.startswith("out_norms")})
    assert "12 unexpected: stages.0.blocks.0.scan.in_proj.weight" in str(error.value)
    message = (
        "It holds adapters, or other layers in the place of the backbone's: put the same ones into the model before"
    )
    for file in (stored, model.state_dict()):
        with pytest.raises(ValueError, match=message):
            plain.load_state_dict(file, strict=False)


class TestLoRAModel:
    """mmpretrain's, whose state dict holds the adapters alone, and the head where it is inside a classifier."""

    BACKBONE: ClassVar = {
        "type": "LoRAModel",
        "module": {
            "type": "mmmsv.MSVMamba",
            "arch": {"embed_dims": (8, 16), "depths": (1, 1)},
            "out_indices": (1,),
        },
        "rank": 2,
        "targets": [{"type": "in_proj"}],
    }

    def test_plain(self):
        config = {
            "type": "ImageClassifier",
            "_scope_": "mmpretrain",
            "backbone": self.BACKBONE,
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": 10, "in_channels": 16},
        }
        model, other = (MODELS.build(copy.deepcopy(config)) for _ in range(2))
        saved = model.state_dict()
        assert not [name for name in saved if "original_layer" in name]
        other.load_state_dict(saved)
        assert all(torch.equal(value, saved[name]) for name, value in other.state_dict().items())
        assert list_loading_mismatches(model, saved) == []
        del saved["backbone.module.stages.1.blocks.0.scan.in_proj.lora_up.weight"]
        with pytest.raises(ValueError, match=f"1 missing: .*lora_up.weight. {HAS_TO_HOLD}"):
            list_loading_mismatches(model, saved)

    def test_in_a_run(self, tmp_path):
        changes = {"model.backbone": {"_delete_": True, **self.BACKBONE}}
        runner = small_classifier(tmp_path, **changes)
        runner.train()
        trained = runner.model.state_dict()
        path = str(tmp_path / "run/epoch_1.pth")
        tested = small_classifier(tmp_path, load_from=path, **changes)
        tested.load_or_resume()
        resumed = small_classifier(tmp_path, load_from=path, resume=True, **changes)
        resumed._train_loop = resumed.build_train_loop(resumed._train_loop)
        resumed.load_or_resume()
        for other in (tested, resumed):
            assert all(torch.equal(value, trained[name]) for name, value in other.model.state_dict().items())


class TestPeft:
    """The library itself, which no requirement of this repository has: these run only where it is installed."""

    CONFIGS: ClassVar = {
        "LoRA": ("LoraConfig", {"r": 2}),
        "DoRA": ("LoraConfig", {"r": 2, "use_dora": True}),
        "biases": ("LoraConfig", {"r": 2, "bias": "all"}),
        "biases of its layers": ("LoraConfig", {"r": 2, "bias": "lora_only"}),
        "modules_to_save": ("LoraConfig", {"r": 2, "modules_to_save": ["stem"]}),
        "IA3": ("IA3Config", {"feedforward_modules": ["fc1"]}),
        "LoHa": ("LoHaConfig", {"r": 2}),
        "AdaLoRA": ("AdaLoraConfig", {"init_r": 2, "target_r": 1, "total_step": 10}),
        "VeRA": ("VeraConfig", {"r": 2}),
    }

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_saved_and_loaded(self, config, tmp_path):
        peft = pytest.importorskip("peft")
        layers = ["in_proj"] if config[0] == "VeraConfig" else [*LAYERS]
        settings = getattr(peft, config[0])(target_modules=layers, **config[1])
        plain = MSVMamba(SMALL).eval()
        model = peft.get_peft_model(copy.deepcopy(plain), settings).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        image = torch.rand(1, 3, 32, 32)
        expected = model(image)[-1]
        model.save_pretrained(tmp_path)
        for trainable in (False, True):
            loaded = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path, is_trainable=trainable).eval()
            assert torch.allclose(loaded(image)[-1], expected, atol=1e-5)
        plain.load_state_dict(model.merge_and_unload().state_dict())
        assert torch.allclose(plain(image)[-1], expected, atol=1e-4)
