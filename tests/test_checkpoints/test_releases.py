"""VMamba's first release, and its version in one file, have other names: they load, and are written again."""

import re

import pytest
import torch

from mmmsv.checkpoints.conversion import from_authors_file, save_named_by_hash, to_authors_file
from mmmsv.checkpoints.releases import CURRENT, Release, from_current, release_of, to_current
from mmmsv.models import MSVMamba, VMamba
from tests.test_models.golden import arch_of, load_golden

from .refusals import assert_refused, refused
from .test_initializer import initialize
from .test_translation import assert_same

FIRST, ONE_FILE = Release(first=True), Release(one_file=True)


def first_name(name):
    """A name of the first release, written out for each that differs."""
    for now, was in (
        ("patch_embed.0.", "patch_embed.proj."),
        ("patch_embed.2.", "patch_embed.norm."),
        (".op.", ".self_attention."),
        ("classifier.norm.", "norm."),
        ("classifier.head.", "head."),
    ):
        name = name.replace(now, was)
    return re.sub(r"(blocks\.\d+)\.norm\.", r"\1.ln_1.", name)


def one_file_name(name):
    return name.replace("downsample.3.", "downsample.2.")


# The golden file, whether the file is in the flat layout, how its names are changed, and the release.
RELEASES = {
    "first": ("vmamba_arxiv.pt", False, first_name, FIRST),
    "one file": ("vmamba_s1.pt", True, one_file_name, ONE_FILE),
    "one file, MSVMamba": ("neurips.pt", False, one_file_name, ONE_FILE),
}


@pytest.fixture(params=RELEASES.values(), ids=RELEASES)
def released(request):
    """Weights of a classifier and of a detector, each with its current names and those of the release."""
    file, flat, rename, release = request.param
    golden = load_golden(file)
    classifier = golden["model"]
    dense = {f"backbone.{name}": value for name, value in classifier.items() if not name.startswith("classifier.")}
    dense |= {f"backbone.{name}": value for name, value in golden["outnorm"].items()}
    # Parts of a detector, with names that a classifier's parts have in the first release.
    dense |= {"neck.conv.weight": torch.ones(1), "head.weight": torch.ones(1), "norm.weight": torch.ones(1)}
    renamed = {name if name.startswith(("neck.", "head.", "norm.")) else rename(name): dense[name] for name in dense}
    forms = [(classifier, {rename(name): value for name, value in classifier.items()}), (dense, renamed)]
    return arch_of(golden["meta"]), flat, release, forms


def test_initializer(released, authors):
    arch, _, _, forms = released
    for stages, (now, was) in zip([(3,), None], forms, strict=True):
        assert now.keys() != was.keys()
        model, same = MSVMamba(arch, out_indices=stages), MSVMamba(arch, out_indices=stages)
        initialize(model, authors.save({"model": was}))
        initialize(same, authors.save({"model": now}))
        assert_same(model.state_dict(), same.state_dict())


def test_converter_both_ways(released, authors):
    _, flat, release, forms = released
    for now, was in forms:
        ours, summary = from_authors_file(authors.save({"model": was}))
        assert_same(ours["state_dict"], from_authors_file(authors.save({"model": now}))[0]["state_dict"])
        assert "mmmsv.MSVMamba" in summary
        path = save_named_by_hash(ours, str(authors.folder / "ours.pth"), "x")
        for written, expected in ((CURRENT, now), (release, was)):
            theirs, _ = to_authors_file(path, flat, written)
            assert_same(theirs.get("model", theirs.get("state_dict")), expected)


def test_names_there_and_back(released):
    _, _, release, forms = released
    for now, was in forms:
        assert release_of(was) == release
        assert release_of(now) == CURRENT
        assert [*to_current(was, release)] == [*now]
        assert [*from_current(now, release)] == [*was]
        assert [*to_current(now, CURRENT)] == [*now]


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_wrapped(released, authors, wrapper):
    arch, _, _, ((now, was), _) = released
    model = MSVMamba(arch, out_indices=(3,))
    initialize(model, authors.save({"model_ema": {wrapper + name: value for name, value in was.items()}}))
    assert torch.equal(model.out_norms["3"].weight, now["classifier.norm.weight"].float())


def test_published_arch_of_the_first_release(authors):
    with torch.device("meta"):
        ours = {f"backbone.{name}": value for name, value in VMamba("tiny", out_indices=(3,)).state_dict().items()}
    weights = {name: torch.zeros(value.shape) for name, value in ours.items()}
    head = {"head.fc.weight": torch.zeros(1000, 768), "head.fc.bias": torch.zeros(1000)}
    theirs, _ = to_authors_file(authors.save({"state_dict": {**weights, **head}}), release=FIRST)
    assert {"patch_embed.proj.weight", "layers.0.blocks.0.ln_1.weight", "norm.weight", "head.bias"} <= {
        *theirs["model"]
    }
    _, summary = from_authors_file(authors.save(theirs))
    assert "mmmsv.VMamba, arch='tiny'" in summary


class TestMessages:
    """In the names of the file."""

    def model_and_weights(self):
        golden = load_golden("vmamba_arxiv.pt")
        weights = {first_name(name): value for name, value in golden["model"].items()}
        return MSVMamba(arch_of(golden["meta"]), out_indices=(3,)), weights

    @pytest.mark.parametrize("name", ["layers.0.blocks.0.ln_1.weight", "layers.1.blocks.0.self_attention.Ds"])
    def test_missing(self, authors, name):
        model, weights = self.model_and_weights()
        del weights[name]
        assert_refused(model, authors.save(weights), f"1 missing: {name}. ")

    def test_both_names(self, authors):
        model, weights = self.model_and_weights()
        weights["layers.0.blocks.0.norm.weight"] = torch.ones(8)
        assert_refused(model, authors.save(weights), "1 unexpected: layers.0.blocks.0.norm.weight. ")

    def test_other_arch(self, authors):
        _, weights = self.model_and_weights()
        assert_refused(MSVMamba("nano"), authors.save(weights), "The file is of mmmsv.MSVMamba, arch=dict.*: give the")

    def test_mmengines_own_loader_points_here(self):
        model, weights = self.model_and_weights()
        with pytest.raises(ValueError, match=r"names of the authors.*mmmsv.AuthorsCheckpoint.*convert_checkpoint"):
            model.load_state_dict(weights, strict=False)

    def test_archs_that_a_release_did_not_have(self, authors):
        def converted(name):
            ours, _ = from_authors_file(authors.save(load_golden(name)["model"]))
            return authors.save(ours, "ours.pth")

        for name in ("neurips.pt", "arxiv.pt", "vmamba_s1.pt"):
            with refused("VMamba's first release has only blocks of one scan without an FFN, and a stem of patches$"):
                to_authors_file(converted(name), release=FIRST)
        with refused("only a downsampling by convolutions has other names in VMamba's version in one file$"):
            to_authors_file(converted("vmamba_arxiv.pt"), release=ONE_FILE)
