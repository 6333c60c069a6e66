"""Networks are loaded by arch or config with weights that fit, and see photographs as in training."""

import re

import pytest
import torch
from torch import nn

from mmmsv.analysis.flops import build_classifier
from mmmsv.analysis.networks import Network, load_network
from mmmsv.checkpoints.conversion import to_authors_file
from mmmsv.models import MSVMamba
from tests.test_tools.load import ROOT

from .small import photograph

CONFIG = str(ROOT / "configs/cls/msvmamba_n_clothing_mini.py")


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(1)
    return build_classifier("MSVMamba", "nano", 10)


def save(path, weights) -> str:
    torch.save(weights, path)
    return str(path)


def in_mmpretrain(classifier) -> dict[str, torch.Tensor]:
    """Its weights under the names of mmpretrain's."""
    return {name.replace("head.", "head.fc."): value for name, value in classifier.state_dict().items()}


def test_random_weights_are_the_same_each_time():
    before = torch.get_rng_state()
    one, other = load_network("nano"), load_network("MSVMamba:nano")
    assert torch.equal(torch.get_rng_state(), before)
    assert one.title == "MSVMamba nano, random weights"
    assert not one.model.training
    state = other.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.model.state_dict().items())


def test_an_arch_takes_a_backbone_or_a_classifier(nano, tmp_path):
    body, whole = nano.backbone.state_dict(), nano.state_dict()
    of_mmpretrain = in_mmpretrain(nano)
    for name, weights in (("body.pth", body), ("whole.pth", {"state_dict": of_mmpretrain, "meta": {}})):
        loaded = load_network("nano", save(tmp_path / name, weights))
        assert loaded.title == f"MSVMamba nano, {name}"
        assert torch.equal(
            loaded.backbone.stages[0].blocks[0].scan.in_proj.weight, body["stages.0.blocks.0.scan.in_proj.weight"]
        )
    assert torch.equal(loaded.model.head.weight, whole["head.weight"])  # of 10 classes, as in the file


def test_an_arch_takes_what_such_a_network_saved(nano, tmp_path):
    """Whose classifier is called head, not head.fc as in mmpretrain."""
    torch.save(nano.state_dict(), tmp_path / "own.pth")
    loaded = load_network("nano", str(tmp_path / "own.pth"))
    assert torch.equal(loaded.model.head.weight, nano.head.weight)
    assert not loaded.lacks


def test_a_config_takes_the_whole_model(nano, tmp_path):
    loaded = load_network(CONFIG, save(tmp_path / "epoch_20.pth", {"state_dict": in_mmpretrain(nano), "meta": {}}))
    assert loaded.title == "msvmamba_n_clothing_mini, epoch_20.pth"
    assert torch.equal(loaded.model.head.fc.weight, nano.head.weight)
    image = loaded.prepare([photograph(), photograph(seed=1)])
    # The data preprocessor of the config has the mean and the width of ImageNet, as an arch without a config.
    torch.testing.assert_close(image, load_network("nano").prepare([photograph(), photograph(seed=1)]))
    with torch.no_grad():
        torch.testing.assert_close(loaded.backbone(image)[-1], nano.backbone(image)[-1])


def test_a_classifier_of_torchvision_has_no_scan():
    network = load_network("squeezenet1_1")
    assert network.title == "squeezenet1_1, random weights"
    with pytest.raises(ValueError, match="squeezenet1_1 has no scan: it is a SqueezeNet; give an arch or a config of"):
        network.scan(0, 0)
    with pytest.raises(ValueError, match="it is a Linear"):
        Network("other", "", nn.ModuleDict({"backbone": nn.Linear(1, 1)})).block(0, 0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("huge", "there is no model 'huge'; choose one of nano, micro, tiny"),
        ("none.py", "none.py cannot be read as a config"),
    ],
)
def test_models_that_are_not_there(model, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_network(model)


def test_checkpoints_that_do_not_fit(nano, tmp_path):
    with pytest.raises(ValueError, match=r"the checkpoint .*none.pth cannot be read \(.*none.pth.*\)"):
        load_network("nano", str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"the checkpoint .*text.pth cannot be read \("):
        load_network("nano", str(tmp_path / "text.pth"))
    with pytest.raises(ValueError, match=r"the checkpoint .*empty.pth holds no weights; give one that"):
        load_network("nano", save(tmp_path / "empty.pth", {"meta": {}}))
    path = save(tmp_path / "nano.pth", nano.state_dict())
    with pytest.raises(
        ValueError, match=r"does not fit MSVMamba micro: .*of another shape: backbone\.stem.*Give the model"
    ):
        load_network("micro", path)
    torn = {name: value for name, value in nano.state_dict().items() if "stages.1." not in name}
    with pytest.raises(ValueError, match=r"does not fit MSVMamba nano: \d+ missing: backbone\.stages\.1\."):
        load_network("nano", save(tmp_path / "torn.pth", torn))
    with pytest.raises(ValueError, match=r"does not fit msvmamba_n_clothing_mini: 2 missing: head\.fc\.weight, head"):
        load_network(
            CONFIG, save(tmp_path / "body.pth", {f"backbone.{k}": v for k, v in nano.backbone.state_dict().items()})
        )


def test_output_norms_may_be_others(tmp_path):
    """A detector has one for each stage, a classifier one."""
    detector = {f"backbone.{name}": value for name, value in MSVMamba("nano").state_dict().items()}
    load_network("nano", save(tmp_path / "detector.pth", detector))


def test_a_file_of_the_authors(nano, tmp_path):
    of_mmengine = save(tmp_path / "nano.pth", {"state_dict": in_mmpretrain(nano), "meta": {}})
    checkpoint, _ = to_authors_file(of_mmengine)
    loaded = load_network("nano", f"authors://{save(tmp_path / 'theirs.pth', checkpoint)}")
    assert loaded.title == "MSVMamba nano, theirs.pth"
    state = nano.backbone.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.backbone.state_dict().items())


def test_names_of_classes(nano, tmp_path):
    """A checkpoint of MMEngine says which classes it is of, and a config which ones it tests on."""
    content = {"state_dict": nano.backbone.state_dict(), "meta": {"dataset_meta": {"classes": ("hat", "shoe")}}}
    loaded = load_network("nano", save(tmp_path / "body.pth", content))
    assert loaded.classes == ("hat", "shoe")
    assert loaded.lacks == ["head.weight", "head.bias"]
    assert load_network("nano").classes == ()
    config = (ROOT / "configs/cls/msvmamba_n_clothing_mini.py").read_text().replace("'../", f"'{ROOT}/configs/")
    path = tmp_path / "imagenet.py"
    path.write_text(f"{config}\ntest_dataloader = dict(dataset=dict(type='ImageNet'))\n")
    assert load_network(str(path)).classes[1] == "goldfish, Carassius auratus"
