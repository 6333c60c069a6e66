"""What AuthorsCheckpoint understands, what it may leave behind, and what it says."""

import pytest
import torch
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmseg.registry import MODELS as MMSEG_MODELS

from mmmsv.checkpoints import AuthorsCheckpoint
from mmmsv.checkpoints.translation import from_authors, to_authors
from mmmsv.models import MSVMamba
from tests.test_models.golden import arch_of, load_golden

from .refusals import assert_refused

# The arch of the small file, as it is reported.
NAME = (
    "mmmsv.MSVMamba, arch=dict(embed_dims=(8, 16, 32, 48), depths=(1, 1, 2, 1), stem='conv', downsample='conv', "
    "ssm_ratio=1.0, fusion='norm_last', gate=False, ffn_ratio=4.0, ffn_norm='post')"
)


def initialize(model, path):
    model.init_cfg = {"type": "mmmsv.AuthorsCheckpoint", "checkpoint": str(path)}
    model.init_weights()
    return model


def loaded(model, weights):
    """Names of the model's tensors that are those of the authors' weights."""
    backbone = model if isinstance(model, MSVMamba) else model.backbone
    prefix = "backbone." if model is backbone else ""
    theirs = from_authors(weights, backbone.arch)
    ours = model.state_dict()
    return {name for name in ours if prefix + name in theirs and torch.equal(ours[name], theirs[prefix + name])}


def classifier(authors, classes):
    return MMPRETRAIN_MODELS.build(
        {
            "type": "ImageClassifier",
            "_scope_": "mmpretrain",
            "backbone": {"type": "mmmsv.MSVMamba", "arch": arch_of(authors.meta), "out_indices": (3,)},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": classes, "in_channels": 48},
        }
    )


def with_convolutions(weights):
    """Write linear layers as convolutions of 1 x 1."""
    apart = ("A_logs", "dt_projs_bias")
    return {n: v[:, :, None, None] if v.dim() == 2 and not n.endswith(apart) else v for n, v in weights.items()}


FORMS = {
    "model": lambda weights: {"model": weights, "epoch": 3},
    "state_dict": lambda weights: {"state_dict": weights},
    "bare": lambda weights: weights,
    "module": lambda weights: {"model": {f"module.{name}": value for name, value in weights.items()}},
    "model_ema": lambda weights: {"model_ema": weights, "model": {name: value + 1 for name, value in weights.items()}},
    "model_ema_none": lambda weights: {"model": weights, "model_ema": None},
    "conv1x1": lambda weights: {"model": with_convolutions(weights)},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_files(authors, form):
    model = initialize(authors.model(out_indices=(3,)), authors.save(form(authors.weights)))
    assert loaded(model, authors.weights) == model.state_dict().keys()


def test_files_of_detectors(authors):
    path = authors.save({"state_dict": authors.dense(**{"neck.conv.weight": torch.ones(1)})})
    model = initialize(authors.model(), path)
    assert loaded(model, authors.dense()) == model.state_dict().keys()
    bare = {name.removeprefix("backbone."): value for name, value in authors.dense().items()}
    model = initialize(authors.model(), authors.save(bare))
    assert loaded(model, authors.dense()) == model.state_dict().keys()


@pytest.mark.parametrize("as_convolutions", [False, True], ids=["linear", "convolutions"])
def test_flat_layout(authors, as_convolutions):
    golden = load_golden("vmamba_s1.pt")
    weights = {
        name: value[:, :, None, None] if as_convolutions and value.dim() == 2 and "dt_projs_bias" not in name else value
        for name, value in golden["model"].items()
    }
    model = initialize(MSVMamba(arch_of(golden["meta"]), out_indices=(3,)), authors.save({"model": weights}))
    assert loaded(model, golden["model"]) == model.state_dict().keys()


def test_half_precision(authors):
    half = {name: value.half() for name, value in authors.weights.items()}
    model = initialize(authors.model(out_indices=(3,)), authors.save({"model": half}))
    assert all(value.dtype is torch.float32 for value in model.state_dict().values())
    assert torch.equal(model.stem.conv1.weight, half["patch_embed.0.weight"].float())


def test_one_line_says_file_arch_and_number_of_tensors(authors, log):
    path = authors.save({"model": authors.weights, "model_ema": authors.weights})
    initialize(authors.model(), path)
    summary = [line for line in log if line.startswith("AuthorsCheckpoint")]
    assert summary == [
        f"AuthorsCheckpoint: {path} (model_ema): {NAME}, {len(authors.weights) - 2} tensors; left as initialised: "
        "backbone.out_norms.0, backbone.out_norms.1, backbone.out_norms.2; in the file, not used: classifier.head"
    ]


def test_published_arch_is_told_by_name(authors, log):
    model = MSVMamba("nano", out_indices=(3,))
    weights = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    head = {"head.fc.weight": torch.ones(1000, 384), "head.fc.bias": torch.ones(1000)}
    theirs = to_authors({**weights, **head}, model.arch, True)
    initialize(MSVMamba("nano", out_indices=(3,)), authors.save({"model": theirs}))
    assert f"(model): mmmsv.MSVMamba, arch='nano', {len(theirs) - 2} tensors" in next(
        line for line in log if line.startswith("Authors")
    )


class TestWholeModels:
    def test_head_of_the_same_size_is_loaded_and_stays(self, authors):
        """Though the head has an init_cfg of its own, which MMEngine runs after that of the whole model."""
        model = initialize(classifier(authors, classes=10), authors.save({"model": authors.weights}))
        assert loaded(model, authors.weights) == model.state_dict().keys()

    def test_head_of_another_size_is_dropped_and_told(self, authors, log):
        model = initialize(classifier(authors, classes=7), authors.save({"model": authors.weights}))
        assert loaded(model, authors.weights) == {name for name in model.state_dict() if name.startswith("backbone.")}
        assert model.head.fc.weight.shape == (7, 48)
        summary = next(line for line in log if line.startswith("AuthorsCheckpoint"))
        assert summary.endswith("left as initialised: head; in the file, not used: classifier.head")

    def test_segmentor_takes_a_classifiers_backbone(self, authors):
        model = segmentor(authors)
        before = model.decode_head.conv_seg.weight.clone()
        initialize(model, authors.save({"model": authors.weights}))
        assert len(loaded(model, authors.weights)) == len(model.backbone.state_dict()) - 6  # three norms
        assert not torch.equal(model.decode_head.conv_seg.weight, before)  # initialised as ever

    def test_segmentor_takes_a_segmentors_file_whole(self, authors):
        model, other = segmentor(authors), segmentor(authors)
        rest = {name: value for name, value in other.state_dict().items() if not name.startswith("backbone.")}
        rest = {name: torch.randn_like(value) for name, value in rest.items()}
        initialize(model, authors.save({"state_dict": authors.dense(**rest)}))
        assert loaded(model, authors.dense(**rest)) == model.state_dict().keys()

    def test_segmentors_convolution_without_its_kernels_axes_is_refused(self, authors):
        """It has the shape of a linear layer: only backbones may write one for the other."""
        model = segmentor(authors)
        rest = {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.")}
        rest["decode_head.conv_seg.weight"] = rest["decode_head.conv_seg.weight"][:, :, 0, 0]
        path = authors.save({"state_dict": authors.dense(**rest)})
        assert_refused(model, path, r"1 of another shape: decode_head.conv_seg.weight \(\(5, 8\)")

    def test_file_with_another_head_is_refused(self, authors):
        path = authors.save({"state_dict": authors.dense(**{"decode_head.conv.weight": torch.ones(1)})})
        with pytest.raises(ValueError, match=r"missing: decode_head.conv_seg.*1 unexpected: decode_head.conv.weight"):
            initialize(segmentor(authors), path)


def segmentor(authors):
    return MMSEG_MODELS.build(
        {
            "type": "EncoderDecoder",
            "_scope_": "mmseg",
            "backbone": {"type": "mmmsv.MSVMamba", "arch": arch_of(authors.meta)},
            "decode_head": {"type": "FCNHead", "in_channels": 48, "channels": 8, "num_classes": 5},
        }
    )


def test_is_registered_with_mmengine():
    assert WEIGHT_INITIALIZERS.get("mmmsv.AuthorsCheckpoint").__name__ == "AuthorsCheckpoint"


def test_other_backbones_are_refused(authors):
    resnet = {"type": "ImageClassifier", "_scope_": "mmpretrain", "backbone": {"type": "ResNet", "depth": 18}}
    with pytest.raises(TypeError, match="not a ImageClassifier with a ResNet"):
        initialize(MMPRETRAIN_MODELS.build(resnet), authors.save(authors.weights))
    with pytest.raises(TypeError, match="checkpoint is a int, expected a path, a URL or authors://NAME"):
        WEIGHT_INITIALIZERS.build({"type": "mmmsv.AuthorsCheckpoint", "checkpoint": 3})(authors.model())


class TestOrderOfInitialisations:
    """Nothing draws anew what was loaded."""

    DRAW = {"type": "TruncNormal", "layer": "Linear", "std": 0.02}  # noqa: RUF012

    def test_last_of_a_list(self, authors):
        load = {"type": "mmmsv.AuthorsCheckpoint", "checkpoint": str(authors.save({"model": authors.weights}))}
        model = authors.model(out_indices=(3,), init_cfg=[self.DRAW, load])
        model.init_weights()
        assert loaded(model, authors.weights) == model.state_dict().keys()
        with pytest.raises(ValueError, match="MSVMamba: AuthorsCheckpoint must be the last entry"):
            authors.model(init_cfg=[load, self.DRAW]).init_weights()

    def test_backbone_with_its_own(self, authors):
        model = segmentor(authors)
        model.backbone.init_cfg = self.DRAW
        initialize(model, authors.save({"model": authors.weights}))
        assert len(loaded(model, authors.weights)) == len(model.backbone.state_dict()) - 6  # three norms


def test_values_too_large_for_the_model(authors):
    large = {**authors.weights, "patch_embed.0.bias": torch.full((4,), 1e6)}
    model = authors.model(out_indices=(3,)).half()
    with pytest.raises(ValueError, match=r"backbone.stem.conv1.bias that are too large for torch.float16"):
        initialize(model, authors.save({"model": large}))


def test_model_without_memory(authors):
    with torch.device("meta"):
        model = authors.model()
    with pytest.raises(ValueError, match="of the model is on the meta device"):
        AuthorsCheckpoint(authors.save({"model": authors.weights}))(model)


def test_what_the_file_does_not_tell_is_said(authors, log):
    arch = {**arch_of(authors.meta), "half_stride": 4}
    initialize(MSVMamba(arch, out_indices=(3,)), authors.save({"model": authors.weights}))
    summary = next(line for line in log if line.startswith("AuthorsCheckpoint"))
    assert summary.endswith("; directions of routes and half_stride are the model's, the file does not show them")


@pytest.mark.parametrize("routes", [("row",) * 4, ("row", "row", "row_rev", "row_rev")], ids=["uni", "bi"])
def test_scan_patterns(authors, log, routes):
    """A file of Uni-Scan or Bi-Scan has the names and shapes of CrossScan; the model says which one it is of."""
    golden = load_golden("vmamba_arxiv.pt")
    path = authors.save({"model": golden["model"]})
    cross = initialize(MSVMamba(arch_of(golden["meta"]), out_indices=(3,)), path)
    model = initialize(MSVMamba({**arch_of(golden["meta"]), "full_routes": routes}, out_indices=(3,)), path)
    told = [line for line in log if line.startswith("AuthorsCheckpoint")]
    said = "; directions of routes and half_stride are the model's, the file does not show them"
    assert [line.endswith(said) for line in told] == [False, True]
    assert all(torch.equal(value, cross.state_dict()[name]) for name, value in model.state_dict().items())
    image = torch.randn(1, 3, 64, 64)  # the last map is 2 x 2, where routes differ
    assert not torch.allclose(model(image)[0], cross(image)[0])


def test_output_norms_that_the_model_does_not_want(authors):
    path = authors.save({"state_dict": authors.dense()})
    with pytest.raises(
        ValueError, match=r"2 unexpected: backbone.outnorm0.*Give the backbone the out_indices of these"
    ):
        initialize(authors.model(out_indices=(1, 2, 3)), path)


@pytest.mark.parametrize("form", ["classifier", "detector"])
def test_mmengines_own_loader_points_here(authors, form):
    """A file of the authors given to MMEngine's loaders, as everybody tries first."""
    if form == "classifier":
        path, prefix = authors.save({"model": authors.weights, "epoch": 299}), None
    else:
        path, prefix = authors.save({"state_dict": authors.dense()}), "backbone."
    model = authors.model(init_cfg={"type": "Pretrained", "checkpoint": str(path), "prefix": prefix})
    with pytest.raises(ValueError, match=r"names of the authors.*mmmsv.AuthorsCheckpoint.*convert_checkpoint"):
        model.init_weights()
    with pytest.raises(ValueError, match=r"of the authors.*mmmsv.AuthorsCheckpoint.*convert_checkpoint"):
        load_checkpoint(classifier(authors, classes=10), str(path))
