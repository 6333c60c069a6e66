"""Our models by name and by config, with and without weights: get_model, list_models and the inferencers."""

import importlib

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, init_detector
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.infer import BaseInferencer
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from mmpretrain import ImageClassificationInferencer, get_model, inference_model, list_models
from mmpretrain.apis.model import ModelHub
from mmseg.apis import MMSegInferencer, init_model
from mmseg.utils import get_classes

from mmmsv import model_names
from mmmsv.checkpoints.conversion import to_authors_file
from mmmsv.model_names import register_model_names
from tests.test_checkpoints.server import serving
from tests.test_docs.pages import ROOT

# mim has a function of this name beside it.
mim_download = importlib.import_module("mim.commands.download")
PICTURE = np.zeros((64, 64, 3), np.uint8)
SMALL = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
CLASSIFIERS = [
    model["Name"]
    for metafile in ("cls", "cls/ablations")
    for model in load(ROOT / f"configs/{metafile}/metafile.yml")["Models"]
]
DETECTOR, SEGMENTOR = ROOT / "configs/mask_rcnn/msvmamba_n_1x.py", ROOT / "configs/upernet/msvmamba_n_160k.py"
RANDOM = "ignore:(Checkpoint is not loaded|weights is None|checkpoint is None)"


@pytest.fixture(autouse=True)
def _registered():
    register_model_names()
    # An inferencer of mmdet or mmseg leaves its own.
    init_default_scope("mmpretrain")


@pytest.fixture(scope="module")
def classifier():
    register_model_names()
    init_default_scope("mmpretrain")
    return get_model("msvmamba_n_300e")


@pytest.fixture(scope="module")
def checkpoint(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "classifier.pth"
    torch.save({"state_dict": classifier.state_dict(), "meta": {}}, path)
    return str(path)


def small_classifier():
    """What makes a classifier of another one small; new each time, since MMEngine takes ``_delete_`` out of it."""
    return {"backbone": {"arch": {"_delete_": True, **SMALL}}, "head": {"in_channels": 32, "num_classes": 1000}}


def small(path):
    """Read the config of a detector or segmentor with a smaller backbone and neck, for smaller pictures."""
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(arch=SMALL)
    for part, channels in (("neck", SMALL["embed_dims"]), ("decode_head", SMALL["embed_dims"]), ("auxiliary_head", 24)):
        if part in cfg.model:
            cfg.model[part]["in_channels"] = list(channels) if isinstance(channels, tuple) else channels
        if part.endswith("head") and part in cfg.model:
            cfg.model[part].channels = 16
    for step in cfg.test_dataloader.dataset.pipeline:
        if "scale" in step:
            step.scale = (64, 64)
    return cfg


def save_as_the_authors(model, path):
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": model.state_dict()}, path)
    torch.save(to_authors_file(path)[0], path)


def same(model, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


class TestClassifiers:
    def test_all_are_listed(self):
        assert set(list_models("msvmamba")) == {name for name in CLASSIFIERS if name.startswith("msvmamba")}
        assert set(list_models("vmamba")) == {name for name in CLASSIFIERS if name.startswith("vmamba")}
        assert "msvmamba_n_300e" in list_models("msvmamba", task="Image Classification")
        index = load(ROOT / "model-index.yml")
        models = [model for metafile in index["Import"] for model in load(ROOT / metafile)["Models"]]
        assert {model["Name"] for model in models if model["Config"].startswith("configs/cls/")} == set(CLASSIFIERS)
        assert "resnet50_8xb32_in1k" in list_models()

    def test_by_name(self, classifier):
        assert classifier.backbone.arch == get_model("MSVMamba_n_300e").backbone.arch
        found = ImageClassificationInferencer(classifier, classes=classifier._dataset_meta["classes"])(PICTURE)
        assert found[0]["pred_class"] in classifier._dataset_meta["classes"]
        assert classifier._dataset_meta["classes"][0] == "tench, Tinca tinca"

    def test_what_differs_from_the_config(self):
        model = get_model("msvmamba_t_300e", device="cpu", **small_classifier())
        assert model.backbone.out_channels == (32,)
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)

    def test_inferencers_by_name_without_weights(self):
        (found,) = ImageClassificationInferencer("msvmamba_n_300e", pretrained=False)(PICTURE)
        assert found["pred_scores"].shape == (1000,)
        assert isinstance(inference_model("msvmamba_n_300e", PICTURE, pretrained=False)["pred_class"], str)

    def test_weights_of_a_path(self, classifier, checkpoint):
        assert same(get_model("msvmamba_n_300e", pretrained=checkpoint), classifier)
        config = ROOT / "configs/cls/msvmamba_n_300e.py"
        for model in (str(config), Config.fromfile(config)):
            inferencer = ImageClassificationInferencer(model, pretrained=checkpoint, device="cpu")
            assert same(inferencer.model, classifier)
            assert inferencer(PICTURE)[0]["pred_class"] in classifier._dataset_meta["classes"]

    def test_authors_file_by_name(self, tmp_path, monkeypatch):
        """Nobody fetched it: one sentence; where that says to put it, it is found, and has ImageNet's classes."""
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        path = tmp_path / "checkpoints/msvmamba_t_300e.pth"
        missing = rf"^the file of msvmamba_t_300e has no direct link: fetch it .* put it at {path}"
        with pytest.raises(ValueError, match=missing):
            get_model("msvmamba_t_300e", pretrained=True, **small_classifier())
        with pytest.raises(ValueError, match=missing):
            ImageClassificationInferencer("msvmamba_t_300e", **small_classifier())
        released = get_model("msvmamba_t_300e", **small_classifier())
        save_as_the_authors(released, path)
        inferencer = ImageClassificationInferencer("msvmamba_t_300e", **small_classifier())
        assert same(inferencer.model, released)
        assert inferencer.classes[0] == "tench, Tinca tinca"

    def test_no_file_of_the_authors(self):
        with pytest.raises(
            ValueError, match=r"^msvmamba_n_clothing_mini is a config here, and the authors released no file"
        ):
            get_model("msvmamba_n_clothing_mini", pretrained=True)


@pytest.mark.filterwarnings(RANDOM)
class TestDetectors:
    @pytest.mark.parametrize("name", ["msvmamba_n_1x", "MSVMamba_N_1x"])
    def test_by_name(self, name, classifier):
        with pytest.warns(UserWarning, match="randomly initialized"):
            inferencer = DetInferencer(name, device="cpu")
        assert inferencer.model.backbone.arch == classifier.backbone.arch
        assert inferencer.model.dataset_meta["classes"][:2] == ["person", "bicycle"]

    def test_by_config_with_weights(self, tmp_path):
        cfg = small(DETECTOR)
        model = init_detector(cfg, device="cpu")
        torch.save(
            {"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": ("cat",)}}}, tmp_path / "x.pth"
        )
        cfg.dump(tmp_path / "config.py")
        for config in (small(DETECTOR), str(tmp_path / "config.py")):
            inferencer = DetInferencer(config, weights=str(tmp_path / "x.pth"), device="cpu", show_progress=False)
            assert same(inferencer.model, model)
            assert inferencer.model.dataset_meta["classes"] == ("cat",)
        (found,) = inferencer(PICTURE)["predictions"]
        assert found.keys() >= {"labels", "scores", "bboxes"}


@pytest.mark.filterwarnings(RANDOM)
class TestSegmentors:
    def test_by_name(self, classifier):
        with pytest.warns(UserWarning, match="randomly initialized"):
            inferencer = MMSegInferencer("msvmamba_n_160k", device="cpu")
        assert inferencer.model.backbone.arch == classifier.backbone.arch

    def test_by_config_with_weights(self, tmp_path):
        """Classes are those of the checkpoint, and with mmseg's ``init_model`` those of as many as the head has."""
        model = init_model(small(SEGMENTOR), device="cpu")
        names = {"classes": get_classes("ade20k"), "palette": [[i, 0, 0] for i in range(150)]}
        torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": names}}, tmp_path / "named.pth")
        torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "plain.pth")
        torch.save(to_authors_file(tmp_path / "named.pth")[0], tmp_path / "theirs.pth")
        for weights in (str(tmp_path / "named.pth"), f"authors://{tmp_path / 'theirs.pth'}"):
            inferencer = MMSegInferencer(small(SEGMENTOR), weights=weights, device="cpu")
            assert same(inferencer.model, model)
            assert inferencer.model.dataset_meta == names
        found = inferencer(PICTURE, return_vis=True)
        assert found["predictions"].shape == found["visualization"].shape[:2] == (64, 64)
        assert list(inferencer.visualizer.dataset_meta["classes"]) == names["classes"]
        with pytest.warns(UserWarning, match="class names are not saved"):
            plain = init_model(small(SEGMENTOR), str(tmp_path / "plain.pth"), device="cpu")
        assert plain.dataset_meta["classes"] == names["classes"]


class TestLookup:
    @pytest.mark.parametrize(
        ("name", "scope", "weights"),
        [
            ("vmamba_t_1x", "mmdet", "authors://vmamba_t_1x"),
            ("msvmamba_t_300e", "mmpretrain", "authors://msvmamba_t_300e"),
            ("vmamba_t_160k", "mmseg", "authors://vmamba_t_160k"),
            ("msvmamba_n_1x", "mmdet", None),
            ("upernet_msvmamba_n_coco_mini", "mmseg", None),
        ],
    )
    def test_weights_are_the_authors_file(self, name, scope, weights):
        cfg, found = look_up(name, scope)
        assert (cfg.default_scope, found) == (scope, weights)

    def test_other_names_are_looked_up_as_before(self):
        cfg, weights = look_up("rtmdet-s", "mmdet")
        assert cfg.model.type == "RTMDet"
        assert weights.startswith("https://download.openmmlab.com/")
        with pytest.raises(ValueError, match="Cannot find model: msvmamba_x_1x in mmdet"):
            look_up("msvmamba_x_1x", "mmdet")

    def test_model_of_another_library(self):
        with pytest.raises(
            ValueError,
            match=r"^msvmamba_n_300e is a model of mmpretrain, and this Inferencer runs models of mmdet; take an "
            r"inferencer of mmpretrain$",
        ):
            look_up("msvmamba_n_300e", "mmdet")
        with pytest.raises(ValueError, match='Failed to find model "msvmamba_n_1x"'):
            get_model("msvmamba_n_1x")

    def test_again(self):
        lookup = BaseInferencer._load_model_from_metafile
        register_model_names()
        assert BaseInferencer._load_model_from_metafile is lookup

    def test_name_that_is_taken(self, monkeypatch):
        taken = {CLASSIFIERS[0]: ModelHub._models_dict[CLASSIFIERS[0]]}
        monkeypatch.setattr(ModelHub, "_models_dict", taken)
        lookup = BaseInferencer._load_model_from_metafile
        with pytest.raises(ValueError, match=f"mmpretrain has {CLASSIFIERS[0]} already"):
            model_names._register.__wrapped__()
        assert ModelHub._models_dict.keys() == {CLASSIFIERS[0]}
        assert BaseInferencer._load_model_from_metafile is lookup

    @pytest.mark.parametrize("content", [None, "../../model-index.yml"])
    def test_no_list(self, content, tmp_path, monkeypatch):
        """As where symbolic links are lost."""
        index = tmp_path / "model-index.yml"
        if content:
            index.write_text(content)
        monkeypatch.setattr(model_names, "MODEL_INDEX", index)
        with pytest.raises(
            ValueError, match=f"^the models are listed by {index}, which lists none: install mmmsv again$"
        ):
            model_names._register.__wrapped__()

    def test_without_mmpretrain(self, monkeypatch):
        """The inferencers of MMEngine know our names all the same."""
        monkeypatch.setattr(model_names, "find_spec", lambda name: None)
        monkeypatch.setattr(BaseInferencer, "_load_model_from_metafile", None)
        model_names._register.__wrapped__()
        assert look_up("msvmamba_n_1x", "mmdet")[1] is None


def look_up(name, scope):
    """What the inferencer of a library finds."""

    class Inferencer(BaseInferencer):
        def __init__(self):
            self.scope = scope

        _init_pipeline = visualize = postprocess = None

    return Inferencer()._load_model_from_metafile(name)


class TestMim:
    """``mim download mmmsv --config NAME --dest DIR``."""

    @pytest.fixture
    def fetch(self, tmp_path, monkeypatch):
        monkeypatch.setattr(mim_download, "is_installed", lambda package: True)
        monkeypatch.setattr(mim_download, "module_full_name", lambda package: package)
        monkeypatch.setattr(mim_download, "get_installed_path", lambda package: str(ROOT / "mmmsv"))

        def fetch(weights):
            info = {"msvmamba_n_300e": {"weight": weights, "config": "configs/cls/msvmamba_n_300e.py"}}
            monkeypatch.setattr(mim_download, "get_model_info", lambda *_, **__: info)
            mim_download.download("mmmsv", ["msvmamba_n_300e"], str(tmp_path / "out"))
            return {path.name: path for path in (tmp_path / "out").iterdir()}

        return fetch

    def test_with_a_direct_link(self, fetch, classifier, tmp_path):
        """The config, and the authors' file as it is, which loads behind ``authors://``."""
        save_as_the_authors(classifier, tmp_path / "served/file.pth")
        with serving(tmp_path / "served") as server:
            files = fetch(f"{server.url}/file.pth")
        assert files.keys() == {"msvmamba_n_300e.py", "file.pth"}
        model = get_model(str(files["msvmamba_n_300e.py"]), pretrained=f"authors://{files['file.pth']}")
        assert same(model, classifier)
        assert "model" in CheckpointLoader.load_checkpoint(str(files["file.pth"]), "cpu")

    @pytest.mark.parametrize("weights", ["none yet/", "no direct link; fetch it from https://drive.google.com/x/"])
    def test_without_one(self, fetch, weights, capsys):
        assert fetch(weights).keys() == {"msvmamba_n_300e.py"}
        assert "Successfully dumped msvmamba_n_300e.py" in capsys.readouterr().out
