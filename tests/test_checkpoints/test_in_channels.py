"""Weights made with images of other channels: refused by name, or adapted as the model is told to."""

import pytest
import torch

from mmmsv.engine.hooks.checkpoint_fit import list_loading_mismatches
from mmmsv.models import MSVMamba
from mmmsv.models.input_channels import FIRST_WEIGHTS, adapt_in_channels

from .test_initializer import initialize

SMALL = {"embed_dims": (8, 16), "depths": (1, 1)}
HOW = ("init", "repeat", "average")


def expected(given, own, how):
    """The first weight, written out channel by channel."""
    if how == "init":
        return own
    channels, wanted = given.shape[1], own.shape[1]
    mean = given.sum(1) / channels
    taken = [mean if how == "average" or wanted == 1 else given[:, channel % channels] for channel in range(wanted)]
    return torch.stack(taken, 1) * (channels / wanted)


class TestWeight:
    @pytest.mark.parametrize(("channels", "wanted"), [(3, 5), (5, 3), (3, 1), (1, 3), (3, 4), (4, 3), (3, 7)])
    @pytest.mark.parametrize("how", HOW)
    def test_values(self, how, channels, wanted):
        given, own = torch.rand(4, channels, 3, 3), torch.rand(4, wanted, 3, 3)
        adapted, done = adapt_in_channels({"w": given, "b": own}, "w", own, how)
        assert torch.allclose(adapted["w"], expected(given, own, how), atol=1e-6)
        assert adapted["b"] is own
        assert done.startswith(f"w has {channels} input channels in the checkpoint and {wanted} in the model: ")
        if how != "init" and channels <= wanted and wanted % channels == 0:  # an image of equal channels gives the same
            assert torch.allclose(adapted["w"].sum(1), given.sum(1), atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtype_of_the_checkpoint(self, dtype):
        adapted, _ = adapt_in_channels({"w": torch.ones(2, 3, 4, 4).to(dtype)}, "w", torch.ones(2, 4, 4, 4), "repeat")
        assert torch.equal(adapted["w"], torch.full((2, 4, 4, 4), 0.75, dtype=dtype))

    @pytest.mark.parametrize("shape", [(2, 4, 4, 4), (3, 3, 4, 4), (2, 3, 7, 7), (2, 3), (2, 0, 4, 4)])
    def test_other_differences_are_left_alone(self, shape):
        given = {"w": torch.ones(shape)}
        assert adapt_in_channels(given, "w", torch.ones(2, 4, 4, 4), "repeat") == (given, None)
        assert adapt_in_channels({}, "w", torch.ones(2, 4, 4, 4), "average") == ({}, None)


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("way", ["strict", "loose", "Pretrained", "prefix"])
def test_ways_to_load(stem, how, way, tmp_path, log):
    name = FIRST_WEIGHTS[stem]
    weights = {key: torch.rand_like(value) for key, value in MSVMamba({**SMALL, "stem": stem}).state_dict().items()}
    model = MSVMamba({**SMALL, "stem": stem}, in_channels=5, adapt_in_channels=how)
    own = model.state_dict()[name].clone()
    if way in ("strict", "loose"):
        model.load_state_dict(weights, strict=way == "strict")
    else:
        prefix = "backbone." if way == "prefix" else ""
        torch.save({"state_dict": {prefix + key: value for key, value in weights.items()}}, tmp_path / "rgb.pth")
        path = str(tmp_path / "rgb.pth")
        model.init_cfg = {"type": "Pretrained", "checkpoint": path, "prefix": prefix or None}
        model.init_weights()
    assert torch.allclose(model.state_dict()[name], expected(weights[name], own, how), atol=1e-6)
    assert all(torch.equal(model.state_dict()[key], weights[key]) for key in weights if key != name)
    done = {"init": "left as initialised", "repeat": "repeated over them and scaled by 3/5"}
    done["average"] = "averaged over them and scaled by 3/5"
    assert [line for line in log if "input channels" in line] == [
        f"MSVMamba: {name} has 3 input channels in the checkpoint and 5 in the model: {done[how]}"
    ]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dense", [False, True], ids=["classifier", "detector"])
def test_authors(authors, how, dense, log):
    model = authors.model(in_channels=1, out_indices=(0, 1, 2, 3) if dense else (3,), adapt_in_channels=how)
    own = model.stem.conv1.weight.detach().clone()
    initialize(model, authors.save({"state_dict": authors.dense()} if dense else {"model": authors.weights}))
    given = authors.weights["patch_embed.0.weight"]
    assert torch.allclose(model.stem.conv1.weight, expected(given.float(), own, how), atol=1e-6)
    done = {"init": "left as initialised", "repeat": "summed over them"}
    done["average"] = "averaged over them and scaled by 3/1"
    (line,) = [line for line in log if line.startswith("AuthorsCheckpoint")]
    assert line.endswith(f"patch_embed.0.weight has 3 input channels in the checkpoint and 1 in the model: {done[how]}")


@pytest.mark.parametrize("how", [*HOW, None])
def test_without_the_first_weight(authors, how, log):
    """'init' has no use for it; the others do."""
    rest = {key: value for key, value in MSVMamba(SMALL).state_dict().items() if key != "stem.conv.weight"}
    theirs = {key: value for key, value in authors.weights.items() if key != "patch_embed.0.weight"}
    model = MSVMamba(SMALL, in_channels=5, adapt_in_channels=how)
    other, path = authors.model(in_channels=5, out_indices=(3,), adapt_in_channels=how), authors.save(theirs)
    if how == "init":
        own = model.stem.conv.weight.detach().clone()
        model.load_state_dict(rest)
        assert torch.equal(model.stem.conv.weight, own)
        assert "MSVMamba: stem.conv.weight is not in the checkpoint, and left as initialised" in log
        initialize(other, path)
        assert torch.equal(other.stem.conv1.bias, authors.weights["patch_embed.0.bias"].float())
    else:
        advice = "It lacks the first weight alone; to begin with the others, adapt_in_channels='init' leaves that"
        with pytest.raises(ValueError, match=rf"nothing was loaded. 1 missing: stem.conv.weight. {advice}"):
            model.load_state_dict(rest)
        with pytest.raises(ValueError, match=rf"nothing of it was taken. 1 missing: patch_embed.0.weight. {advice}"):
            initialize(other, path)


def test_refusal_names_in_channels():
    model = MSVMamba(SMALL, in_channels=4)
    advice = (
        "It was made with in_channels=3: give the model the same; to begin with its weights, "
        "adapt_in_channels='repeat', 'average' or 'init'$"
    )
    with pytest.raises(ValueError, match=rf"1 of another shape: stem.conv.weight .*\. {advice}"):
        model.load_state_dict(MSVMamba(SMALL).state_dict(), strict=False)
    with pytest.raises(ValueError, match=r"of another shape: stem.conv.weight .*Give the arch"):
        model.load_state_dict(MSVMamba({**SMALL, "embed_dims": (16, 32)}).state_dict(), strict=False)


def test_the_check_of_whole_models_does_not_adapt(log):
    """What CheckpointFitHook tries on a copy of the model, when testing and resuming."""
    rgb = MSVMamba(SMALL).state_dict()
    for how in (*HOW, None):
        model = MSVMamba(SMALL, in_channels=2, adapt_in_channels=how)
        with pytest.raises(ValueError, match="It was made with in_channels=3"):
            list_loading_mismatches(model, rgb)
        assert model.adapt_in_channels == how
    assert list_loading_mismatches(MSVMamba(SMALL, out_indices=(1,)), rgb)
    assert log == []  # by the copy, which has other output norms


def test_the_rest_has_to_be_whole():
    rest = {name: value for name, value in MSVMamba(SMALL).state_dict().items() if not name.startswith("stem.conv.")}
    with pytest.raises(ValueError, match=r"1 missing: stem.conv.bias\. It is incomplete"):
        MSVMamba(SMALL, adapt_in_channels="init").load_state_dict(rest, strict=False)


@pytest.mark.parametrize("value", ["sum", True, ["init"], 3])
def test_bad_option(value):
    message = r"^MSVMamba: adapt_in_channels is .*, expected 'init', 'repeat', 'average' or None$"
    with pytest.raises(ValueError, match=message):
        MSVMamba(SMALL, adapt_in_channels=value)
