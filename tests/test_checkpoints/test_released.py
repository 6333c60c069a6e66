"""The files that the authors released load by name: found, fetched, converted, and equal to the golden tensors."""

import pytest
import torch
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, load_checkpoint

from mmmsv.checkpoints import AuthorsCheckpoint, released
from mmmsv.checkpoints.conversion import from_authors_file, save_named_by_hash
from mmmsv.checkpoints.downloads import cache_folder
from mmmsv.checkpoints.released import locate, read_index
from tests.test_engine.test_checkpoint_fit import load as load_as_a_runner
from tests.test_models.golden import arch_of, load_golden
from tests.test_models.test_golden import assert_near

from .refusals import refused
from .test_initializer import classifier, segmentor
from .test_releases import first_name

# The golden file, and the names in the file that is released.
LAYOUTS = {
    "MSVMamba, arXiv": ("arxiv.pt", str),
    "MSVMamba, NeurIPS": ("neurips.pt", str),
    "VMamba, January 2024": ("vmamba_arxiv.pt", first_name),
    "VMamba, 2024": ("vmamba_s1.pt", str),
}


class Authors:
    """What the builders of models here want of the fixture of this name."""

    def __init__(self, meta):
        self.meta = meta


def build_classifier(meta):
    return classifier(Authors(meta), classes=10)


def build_segmentor(meta):
    return segmentor(Authors(meta))


def build_detector(meta):
    return MMDET_MODELS.build(
        {
            "type": "RetinaNet",
            "_scope_": "mmdet",
            "backbone": {"type": "mmmsv.MSVMamba", "arch": arch_of(meta)},
            "neck": {"type": "FPN", "in_channels": meta["embed_dims"], "out_channels": 8, "num_outs": 4},
            "bbox_head": {"type": "RetinaHead", "num_classes": 3, "in_channels": 8, "feat_channels": 8},
        }
    )


BUILDERS = {"cls": build_classifier, "det": build_detector, "seg": build_segmentor}


def released_file(task, golden, rename):
    """A file as the authors' training writes it, and what it has beside the backbone."""
    if task == "cls":
        weights = {rename(name): value for name, value in golden["model"].items()}
        other = {name: value + 1 for name, value in weights.items()}
        return {"model": other, "model_ema": weights, "epoch": 299}, {}
    backbone = {name: value for name, value in golden["model"].items() if not name.startswith("classifier.")}
    weights = {f"backbone.{rename(name)}": value for name, value in {**backbone, **golden["outnorm"]}.items()}
    model = BUILDERS[task](golden["meta"])
    rest = {n: torch.randn_like(v) for n, v in model.state_dict().items() if not n.startswith("backbone.")}
    meta = {"dataset_meta": {"classes": ("cat", "dog")}, "epoch": 12}
    return {"state_dict": {**weights, **rest}, "meta": meta, "optimizer": {}}, rest


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("task", BUILDERS)
def test_from_name_to_the_golden_tensors(release, server, task, layout):
    file, rename = layout
    golden = load_golden(file)
    content, rest = released_file(task, golden, rename)
    url = release("small", content)
    model = BUILDERS[task](golden["meta"]).eval()
    loaded = load_checkpoint(model, "authors://small", map_location="cpu", strict=True)
    ours = model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in rest.items())
    assert loaded["meta"].get("dataset_meta") == content.get("meta", {}).get("dataset_meta")
    for case in golden["cases"]:
        if task == "cls":
            assert_near(model(case["input"], mode="tensor"), case["logits"], 1e-4)
        else:
            for feature, theirs in zip(model.backbone(case["input"]), case["features"], strict=True):
                assert_near(feature, theirs, 1e-4)
    assert [path for path, _ in server.requests] == [url.removeprefix("https:/")]
    (kept, noted) = sorted(path.name for path in cache_folder().iterdir())
    assert noted == f"{kept}.sha256"
    load_checkpoint(BUILDERS[task](golden["meta"]), "authors://small", strict=True)
    assert len(server.requests) == 1


@pytest.fixture
def small(authors, release):
    """A file of a classifier, released as ``small``."""
    return release("small", {"model": authors.weights})


WAYS = {
    "AuthorsCheckpoint": {"type": "mmmsv.AuthorsCheckpoint"},
    "Pretrained": {"type": "Pretrained", "prefix": "backbone."},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("source", ["authors://small", "authors://{url}", "authors://{path}"])
def test_in_init_cfg(authors, small, way, source):
    path = authors.save({"model": authors.weights})
    checkpoint = source.format(url=small, path=path)
    model = authors.model(out_indices=(3,), init_cfg={**way, "checkpoint": checkpoint})
    model.init_weights()
    assert torch.equal(model.stem.conv1.weight, authors.weights["patch_embed.0.weight"])


def test_direct_link_is_converted_by_mmengines_loader(authors, small, server, log):
    """Such a link stands in a metafile; other links pass as they are."""
    checkpoint = CheckpointLoader.load_checkpoint(small)
    assert "backbone.stem.conv1.weight" in checkpoint["state_dict"]
    assert log[-1].startswith(f"converted from the authors' layout: {small} (model): mmmsv.MSVMamba")
    authors.folder = server.folder
    authors.save({"model": authors.weights}, "other.pth")
    assert CheckpointLoader.load_checkpoint(f"{server.url}/other.pth").keys() == {"model"}


def test_map_location(small):
    weights = CheckpointLoader.load_checkpoint("authors://small", map_location="meta")["state_dict"]
    assert all(value.is_meta for value in weights.values())


def test_converted_file_is_named_after_it(authors, small):
    checkpoint, summary = from_authors_file("authors://small")
    assert checkpoint["meta"]["source"] == "small (model)"
    assert summary.startswith("authors://small (model): mmmsv.MSVMamba")
    assert save_named_by_hash(checkpoint, str(authors.folder), "authors://small").name.startswith("small-")


def test_model_without_a_backbone_of_ours(small):
    """Loading by MMEngine refuses nothing there; AuthorsCheckpoint does."""
    with pytest.raises(TypeError, match="not a BaseModule"):
        AuthorsCheckpoint("authors://small")(BaseModule())


class TestErrors:
    def test_unknown_name(self, small):
        with refused(
            r"^authors://smal is no file that the authors released \(did you mean small\?\); there are small. A path "
        ):
            locate("authors://smal")

    def test_all_names_are_listed(self):
        with pytest.raises(
            ValueError, match=r"^authors://xyz is no file that the authors released; there are "
        ) as error:
            locate("authors://xyz")
        assert ", ".join(sorted(read_index(released.MODEL_INDEX))) in str(error.value)

    def test_config_without_a_file(self):
        """It has its name right, so no other is suggested."""
        with refused(r"^msvmamba_n_1x is a config here, and the authors released no file of it; there are msvmamba_m"):
            locate("authors://msvmamba_n_1x")

    def test_no_list(self, monkeypatch, tmp_path):
        """As where symbolic links are lost: a link is a file with the name of another."""
        for content in (None, "../../model-index.yml"):
            index = tmp_path / f"{content is None}.yml"
            if content:
                index.write_text(content)
            monkeypatch.setattr(released, "MODEL_INDEX", index)
            with refused(rf"the released files are listed by {index}, which lists none: install mmmsv again$"):
                locate("authors://small")
            assert not released.is_released("https://github.com/x.pth")

    def test_no_direct_link(self, server, authors):
        """What was fetched by hand is found where the message says to put it."""
        path = cache_folder() / "msvmamba_t_300e.pth"
        with refused(
            r"^the file of msvmamba_t_300e has no direct link: fetch it with a browser from https://drive.google.com/.*"
            rf" and put it at {path}, where authors://msvmamba_t_300e finds it$"
        ):
            locate("authors://msvmamba_t_300e")
        path.parent.mkdir(parents=True)
        authors.save({"model": authors.weights}).rename(path)
        AuthorsCheckpoint("authors://msvmamba_t_300e")(authors.model())
        assert server.requests == []

    def test_ours(self, authors):
        path = authors.save({"state_dict": {f"backbone.{n}": v for n, v in authors.model().state_dict().items()}})
        with refused("has the names of this package already; .* without authors:// it loads as it is$"):
            CheckpointLoader.load_checkpoint(f"authors://{path}")

    def test_authors_file_as_a_plain_path(self, authors):
        path = authors.save({"model": authors.weights})
        with pytest.raises(
            ValueError, match=r"file of the authors.*, give it as authors://PATH, as in --checkpoint au"
        ):
            load_checkpoint(segmentor(authors), str(path))


class TestCheckpointFit:
    """What the runner's hook says of converted files when a model is tested or a run is resumed."""

    def test_segmentors(self, authors, release):
        content, _ = released_file("seg", load_golden("neurips.pt"), str)
        release("small", content)
        load_as_a_runner(segmentor(authors), CheckpointLoader.load_checkpoint("authors://small"))
        with pytest.raises(
            ValueError, match=r"has the names of the authors.*: give it as authors://PATH, as in --checkp"
        ):
            load_as_a_runner(segmentor(authors), content)

    def test_classifiers(self, authors, small):
        checkpoint = CheckpointLoader.load_checkpoint("authors://small")
        load_as_a_runner(classifier(authors, classes=10), checkpoint)
        for model in (segmentor(authors), build_detector(authors.meta)):
            with pytest.raises(ValueError, match=r"does not fit \w+ and cannot be tested; nothing was loaded"):
                load_as_a_runner(model, checkpoint)

    def test_resuming(self, authors, small):
        checkpoint = CheckpointLoader.load_checkpoint("authors://small")
        with pytest.raises(
            ValueError, match="holds weights and not the state of a run, so none can be resumed from it"
        ):
            load_as_a_runner(classifier(authors, classes=10), checkpoint, resume=True)


def test_each_name_has_a_link_or_a_page():
    files = read_index(released.MODEL_INDEX)
    assert {"msvmamba_v3_t_300e", "vmamba_t_1x", "vmamba_t_160k"} <= files.keys()
    for url, folder in files.values():
        assert (url or folder).startswith("https://")


def test_other_addresses_pass(tmp_path):
    for address in ("x.pth", str(tmp_path), "https://host/x.pth", "name"):
        assert locate(address) == address
        if address != "name":
            assert locate(f"authors://{address}") == address
