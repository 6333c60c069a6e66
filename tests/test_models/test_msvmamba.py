"""The backbone as its users meet it: sizes, options, freezing, weights, and what it says to bad input."""

import functools

import pytest
import torch
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn

from mmmsv.models import MSVMamba
from mmmsv.registry import MODELS

SMALL = {"embed_dims": (8, 16, 32, 48), "depths": (1, 1, 2, 1)}


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("size", "strided"),
    [
        ((4, 4), [(1, 1), (1, 1), (1, 1), (1, 1)]),
        ((4, 37), [(1, 9), (1, 5), (1, 3), (1, 2)]),
        ((33, 101), [(8, 25), (4, 13), (2, 7), (1, 4)]),
        ((64, 32), [(16, 8), (8, 4), (4, 2), (2, 1)]),
    ],
)
def test_maps_of_any_image_size(size, strided):
    maps = MSVMamba(SMALL)(torch.randn(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(2, c, *s) for c, s in zip(SMALL["embed_dims"], strided, strict=True)]
    assert all(m.is_contiguous() and m.isfinite().all() for m in maps)


@pytest.mark.parametrize("out_indices", [(0,), (3,), (0, 2), [1, 3]])
def test_out_indices(out_indices):
    torch.manual_seed(0)
    model, whole = MSVMamba(SMALL, out_indices=out_indices).eval(), MSVMamba(SMALL).eval()
    shared = {key: value for key, value in whole.state_dict().items() if key in model.state_dict()}
    model.load_state_dict(shared)
    image = torch.randn(1, 3, 40, 56)
    every = whole(image)
    for ours, index in zip(model(image), out_indices, strict=True):
        torch.testing.assert_close(ours, every[index], rtol=0, atol=0)


def test_built_by_name_with_other_channels():
    model = MODELS.build({"type": "mmmsv.MSVMamba", "arch": SMALL, "in_channels": 5})
    assert model(torch.randn(1, 5, 32, 32))[0].shape == (1, 8, 8, 8)


def test_bfloat16_follows_float32():
    torch.manual_seed(0)
    model, image = MSVMamba(SMALL).eval(), torch.randn(1, 3, 64, 64)
    exact = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model(image)
    for ours, theirs in ((autocast, exact), (model.bfloat16()(image.bfloat16()), exact)):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.float() - other).abs().mean() < 0.02 * other.abs().mean()


def test_initial_values():
    """Steps between 1e-3 and 0.1, A = -1, ..., -N, skip 1, narrow linear weights (but in the ConvFFN and x_proj)."""
    model = MSVMamba({**SMALL, "state_size": 4})
    scan = model.stages[0].blocks[0].scan.half_scan
    step = nn.functional.softplus(scan.dt_bias)
    assert (step > 0.99e-3).all()
    assert (step < 0.101).all()
    torch.testing.assert_close(-scan.A_log.exp(), -torch.arange(1.0, 5).expand(1, 16, 4))
    assert (scan.skip == 1).all()
    assert scan.dt_weight.abs().max() <= scan.dt_weight.shape[-1] ** -0.5
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and ".ffn." not in name}
    assert len(linear) == 6 * 5 + 3  # in, out, two of SE, two scans in each block; the patch mergings
    for name, module in linear.items():
        assert module.bias is None
        if name.endswith(".x_proj"):  # uniform in +-D^-0.5
            bound = module.in_features**-0.5
            assert 0.95 * bound < module.weight.abs().max() <= bound, name
        else:
            assert 0.015 < module.weight.std() < 0.025, name


def test_a_half_resolution_token_is_projected_once():
    model = MSVMamba(SMALL)
    tokens = []
    model.stages[0].blocks[0].scan.half_scan.x_proj.register_forward_hook(
        lambda module, inputs, output: tokens.append(output[..., 0].numel())
    )
    model(torch.randn(1, 3, 64, 64))
    assert tokens == [8 * 8]


def test_one_layout_from_stem_to_output():
    """Every convolution, norm and projection reads and writes contiguous channels-last maps, so nothing is copied."""
    model, strided, seen = MSVMamba(SMALL), [], []

    def look(name, module, inputs, output):
        seen.append(name)
        tensors = (*inputs, *(output if isinstance(output, tuple) else (output,)))
        strided.extend((name, tensor.stride()) for tensor in tensors if not tensor.is_contiguous())

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.LayerNorm, nn.Linear)):
            module.register_forward_hook(functools.partial(look, name))
    model(torch.randn(2, 3, 64, 96))
    assert len(seen) > 60
    assert strided == []


def test_drop_path_rises_linearly():
    blocks = [block for stage in MSVMamba(SMALL, drop_path_rate=0.4).stages for block in stage.blocks]
    assert [block.drop_path.p for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_drop_rates_act_in_training_only():
    torch.manual_seed(0)
    image = torch.randn(4, 3, 32, 32)
    for options in ({"drop_path_rate": 0.5}, {"drop_path_rate": 0.0, "ffn_drop_rate": 0.5}):
        model = MSVMamba(SMALL, **options)
        assert not torch.equal(model(image)[-1], model(image)[-1])
        assert torch.equal(model.eval()(image)[-1], model(image)[-1])
    model = MSVMamba(SMALL, drop_path_rate=0.0)
    assert torch.equal(model(image)[-1], model.eval()(image)[-1])


def test_stages_behind_the_last_map_are_frozen():
    """They are not run: distributed training would wait for their gradients."""
    model = MSVMamba(SMALL, out_indices=(0, 1)).train()
    sum(m.sum() for m in model(torch.randn(1, 3, 32, 32))).backward()
    assert all((parameter.grad is not None) is parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.stages[2:].parameters())


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 4])
def test_frozen_stages(frozen_stages):
    model = MSVMamba(SMALL, frozen_stages=frozen_stages, ffn_drop_rate=0.5)
    assert model.eval().train() is model
    parts = [[model.stem], *([stage, model.out_norms[str(i)]] for i, stage in enumerate(model.stages))]
    for place, part in enumerate(parts):
        for module in part:
            frozen = place <= frozen_stages
            assert all(submodule.training is not frozen for submodule in module.modules())
            assert all(parameter.requires_grad is not frozen for parameter in module.parameters())
    before = weights(model)
    if frozen_stages < 4:
        sum(m.square().sum() for m in model(torch.randn(1, 3, 32, 32))).backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert all(any(key == name for name, p in model.named_parameters() if p.requires_grad) for key in changed)
    assert bool(changed) is (frozen_stages < 4)


def test_norm_eval():
    model = MSVMamba(SMALL, norm_eval=True).train()
    assert model.training
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(norm.training for norm in MSVMamba(SMALL).train().modules() if isinstance(norm, nn.LayerNorm))


def test_with_cp_gives_the_same_gradients():
    torch.manual_seed(0)
    plain, recomputed = MSVMamba(SMALL, frozen_stages=0), MSVMamba(SMALL, frozen_stages=0, with_cp=True)
    recomputed.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 48, 48)
    for model in (plain, recomputed):
        torch.manual_seed(1)  # the same drop path
        sum(m.square().sum() for m in model(image)).backward()
    for ours, theirs in zip(recomputed.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) is (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"arch": "large"}, ValueError, "no arch 'large'; choose one of nano, micro, tiny"),
        ({"arch": 3}, TypeError, "arch is a int, expected a name"),
        (
            {"arch": {**SMALL, "embed_dim": 8}},
            ValueError,
            r"unknown key\(s\) \['embed_dim'\].*allowed are \['base', 'stages', 'embed_dims'",
        ),
        ({"arch": {"depths": (1, 1)}}, ValueError, r"lacks \['embed_dims'\]"),
        ({"arch": {**SMALL, "depths": (1, 1)}}, ValueError, r"must be of one length"),
        ({"arch": {**SMALL, "depths": (1, 1, 0, 1)}}, ValueError, "depths is .* whole numbers of at least 1"),
        ({"arch": {**SMALL, "depths": 4}}, TypeError, "depths is 4, expected a list or tuple"),
        (
            {"arch": {**SMALL, "half_routes": ("diagonal",)}},
            ValueError,
            "half_routes is .*expected routes out of .*row",
        ),
        ({"arch": {**SMALL, "ffn": "moe"}}, ValueError, "ffn is 'moe', expected 'conv', 'mlp' or 'none'"),
        ({"arch": {**SMALL, "se": "yes"}}, TypeError, "se is 'yes', expected True or False"),
        ({"arch": {**SMALL, "ssm_ratio": 0}}, ValueError, "ssm_ratio is 0, expected a number above 0"),
        ({"arch": {**SMALL, "ssm_ratio": 1.3}}, ValueError, r"ssm_ratio is 1.3, .*of at least 8 of the embed_dims \(8"),
        ({"arch": {**SMALL, "ffn_ratio": float("nan")}}, ValueError, "ffn_ratio is nan, expected"),
        ({"arch": {**SMALL, "full_routes": (["row"],)}}, ValueError, "full_routes is .* expected routes out of"),
        ({"out_indices": (0, 4)}, ValueError, r"out_indices is \(0, 4\), expected stages in 0..3"),
        ({"out_indices": (-1,)}, ValueError, r"expected stages in 0..3"),
        ({"out_indices": (1, 1)}, ValueError, "each once"),
        ({"out_indices": (2, 1)}, ValueError, "ascending order"),
        ({"out_indices": ()}, ValueError, "out_indices is"),
        ({"out_indices": 3}, TypeError, "out_indices is 3, expected a list or tuple"),
        ({"with_cp": "no"}, TypeError, "with_cp is 'no', expected True or False"),
        ({"recompute": 1}, TypeError, "recompute is 1, expected True, False or None"),
        ({"norm_eval": 1}, TypeError, "norm_eval is 1, expected True or False"),
        ({"drop_path_rate": 1.0}, ValueError, r"drop_path_rate is 1.0, expected a number in \[0, 1\)"),
        ({"ffn_drop_rate": -0.1}, ValueError, "ffn_drop_rate is -0.1"),
        ({"frozen_stages": 5}, ValueError, r"frozen_stages is 5, expected a whole number in -1..4"),
        ({"in_channels": 0}, ValueError, "in_channels is 0, expected a whole number of at least 1"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        MSVMamba(**{"arch": SMALL, **options})


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, "image is torch.uint8, expected floating point"),
        (torch.zeros(1, 4, 32, 32), ValueError, r"shape \(1, 4, 32, 32\), expected \(B, 3, H, W\); in_channels="),
        (torch.zeros(3, 32, 32), ValueError, r"shape \(3, 32, 32\), expected \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 3, 32), ValueError, "3 x 32 pixels, expected at least 4 x 4; pad or enlarge it"),
        ([1.0], TypeError, "image is a list, expected a torch.Tensor"),
    ],
)
def test_bad_images(image, error, message):
    with pytest.raises(error, match=message):
        MSVMamba(SMALL)(image)


def test_classification_weights_start_a_detector(tmp_path):
    """A classifier's checkpoint has one output norm; a detector keeps its own initial values for the others."""
    classifier = MSVMamba(SMALL, out_indices=(3,))
    state = {f"backbone.{key}": value for key, value in classifier.state_dict().items()}
    save_checkpoint({"state_dict": {**state, "head.fc.weight": torch.ones(10, 48)}}, str(tmp_path / "cls.pth"))
    detector = MSVMamba(
        SMALL, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "cls.pth"), "prefix": "backbone."}
    )
    detector.init_weights()
    for key, value in classifier.state_dict().items():
        assert torch.equal(detector.state_dict()[key], value)
    assert (detector.out_norms["0"].weight == 1).all()


class TestCheckpointThatDoesNotFit:
    """Refused whole by MMEngine's own loader, which would only warn, and nothing is loaded."""

    def refused(self, tmp_path, state, message):
        model = MSVMamba(SMALL)
        before = weights(model)
        save_checkpoint({"state_dict": state}, str(tmp_path / "broken.pth"))
        with pytest.raises(ValueError, match=message):
            load_checkpoint(model, str(tmp_path / "broken.pth"))
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_other_width(self, tmp_path):
        state = MSVMamba({**SMALL, "embed_dims": (16, 32, 48, 64)}).state_dict()
        shapes = r"stem.conv.weight \(\(16, 3, 4, 4\) in the checkpoint, \(8, 3, 4, 4\) in the model\)"
        self.refused(tmp_path, state, rf"does not fit MSVMamba .* nothing was loaded. \d+ of another shape: {shapes}")

    def test_one_missing_and_one_extra(self, tmp_path):
        state = MSVMamba(SMALL).state_dict()
        state["stages.9.weight"] = state.pop("stages.0.blocks.0.norm1.weight")
        self.refused(
            tmp_path,
            state,
            "1 missing: stages.0.blocks.0.norm1.weight; 1 unexpected: stages.9.weight. It is incomplete",
        )

    def test_whole_detector_without_prefix(self, tmp_path):
        state = {f"backbone.{key}": value for key, value in MSVMamba(SMALL).state_dict().items()}
        self.refused(tmp_path, state, r"missing.*whole model: load its backbone with prefix='backbone.'")

    def test_inside_a_model(self, tmp_path):
        holder = nn.Sequential()
        holder.backbone = MSVMamba(SMALL)
        save_checkpoint({"state_dict": {"backbone.layer1.weight": torch.ones(1)}}, str(tmp_path / "resnet.pth"))
        with pytest.raises(ValueError, match=r"does not fit MSVMamba .*1 unexpected: layer1.weight"):
            load_checkpoint(holder, str(tmp_path / "resnet.pth"))

    def test_a_part_of_the_weights(self):
        """Also from torch's own loader; loading a part on purpose goes through the model's own state dict."""
        model, part = MSVMamba(SMALL), {"stem.conv.bias": torch.full((8,), 7.0)}
        with pytest.raises(ValueError, match="162 missing"):
            model.load_state_dict(part, strict=False)
        assert (model.stem.conv.bias != 7).all()
        model.load_state_dict({**model.state_dict(), **part})
        assert (model.stem.conv.bias == 7).all()
