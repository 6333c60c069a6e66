"""The converter as its users run it: names, contents, both directions, what it says of bad input."""

import hashlib
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import save_checkpoint

from mmmsv.checkpoints.conversion import from_authors_file, save_named_by_hash, to_authors_file
from mmmsv.checkpoints.translation import from_authors, is_flat
from mmmsv.models import MSVMamba
from tests.processes import run_script
from tests.test_models.golden import FILES, load_golden

from .test_initializer import NAME
from .test_translation import assert_same

# What the converter says of the small file.
ASSUMED = (
    "; assumed, since the file does not show it: full_routes=('row',), half_routes=('row_rev', 'col', 'col_rev'), "
    "half_stride=2"
)
SMALL = {"embed_dims": (8, 16, 32, 48), "depths": (1, 1, 1, 1)}
TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


def convert(*arguments):
    """Run the tool; return the two lines that it prints."""
    run = run_script([TOOL, *arguments])
    assert run.status == 0, run.output
    return run.output.splitlines()


@pytest.mark.parametrize("name", FILES)
def test_there_and_back_through_files(authors, name):
    golden = load_golden(name)
    flat = is_flat(golden["model"])
    ours, _ = from_authors_file(authors.save({"model": golden["model"]}))
    theirs, _ = to_authors_file(save_named_by_hash(ours, str(authors.folder / "ours.pth"), "x"), flat)
    assert theirs.keys() == {"model"}
    assert_same(theirs["model"], golden["model"])

    dense = {f"backbone.{key}": value for key, value in golden["model"].items() if not key.startswith("classifier.")}
    dense |= {f"backbone.{key}": value for key, value in golden["outnorm"].items()} | {"neck.weight": torch.ones(1)}
    meta = {"dataset_meta": {"classes": ("cat", "dog")}, "epoch": 12}
    ours, _ = from_authors_file(authors.save({"state_dict": dense, "meta": meta}))
    theirs, _ = to_authors_file(save_named_by_hash(ours, str(authors.folder / "ours.pth"), "x"), flat)
    assert_same(theirs["state_dict"], dense)
    assert theirs["meta"] == {"dataset_meta": meta["dataset_meta"]}


@pytest.mark.slow
def test_command(authors):
    source = authors.save({"model": authors.weights, "model_ema": authors.weights}, "msvmambav3.pth")
    summary, written = convert(source, authors.folder / "out" / "v3.pth")
    assert summary == f"{source} (model_ema): {NAME}, {len(authors.weights)} tensors{ASSUMED}"
    path = Path(written.removeprefix("written: "))
    assert re.fullmatch(r"v3-[0-9a-f]{8}\.pth", path.name)
    assert path.stem[-8:] == hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert list(path.parent.iterdir()) == [path]
    _, again = convert(source, authors.folder / "v3.pth")
    assert again.endswith(path.name)  # the same content has the same name

    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["meta"]["source"] == "msvmambav3.pth (model_ema)"
    assert_same(checkpoint["state_dict"], from_authors(authors.weights, authors.model().arch))

    _, back = convert("--to-authors", path, authors.folder)
    returned = torch.load(back.removeprefix("written: "), weights_only=True)
    assert_same(returned["model"], authors.weights)


def test_what_is_assumed_is_said(authors):
    """A file of Uni-Scan or Bi-Scan has the parameter sets of CrossScan."""
    _, summary = from_authors_file(authors.save({"model": authors.weights}))
    assert summary.endswith(f" tensors{ASSUMED}")
    _, summary = from_authors_file(authors.save({"model": load_golden("vmamba_arxiv.pt")["model"]}))
    assert summary.endswith("does not show it: full_routes=('row', 'col', 'row_rev', 'col_rev')")


def test_names_no_more_than_it_holds(authors):
    """Views are copied: each tensor of the file has a storage of its own size."""
    ours, _ = from_authors_file(authors.save({"model": authors.weights}))
    for tensor in ours["state_dict"].values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_trained_model_goes_back(authors):
    """One of MMEngine's own checkpoints, with whatever else they hold."""
    model = torch.nn.Module()
    model.backbone, model.decode_head = authors.model(), torch.nn.Linear(2, 3)
    path = authors.folder / "epoch_1.pth"
    save_checkpoint({"state_dict": model.state_dict(), "meta": {"cfg": "model = dict()"}, "optimizer": {}}, str(path))
    theirs, summary = to_authors_file(path)
    assert "(state_dict)" in summary
    assert torch.equal(theirs["state_dict"]["decode_head.weight"], model.decode_head.weight)
    assert_same(from_authors(theirs["state_dict"], model.backbone.arch), model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nothing.pth", "out.pth"],
            "convert_checkpoint.py: the checkpoint nothing.pth is not there; give the path of",
        ),
        (
            ["--flat", "in.pth", "out.pth"],
            "--flat goes with --to-authors; files that are flat are understood without it",
        ),
        (
            ["--one-file", "in.pth", "out.pth"],
            "--first-release and --one-file go with --to-authors; such files are understood without them",
        ),
        (
            ["--to-authors", "--flat", "--first-release", "in.pth", "out.pth"],
            "--flat and --first-release exclude each other: that release had the older layout alone",
        ),
        (["in.pth"], "the following arguments are required: DST"),
    ],
    ids=["no file", "flat alone", "a release alone", "flat in the first release", "no destination"],
)
def test_bad_arguments(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(TOOL), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert message in f"{end.value} {capsys.readouterr().err}"
    assert end.value.code


def test_releases_from_the_command_line(authors, monkeypatch, capsys):
    golden = load_golden("vmamba_arxiv.pt")
    ours, _ = from_authors_file(authors.save({"model": golden["model"]}))
    path, folder = str(authors.save(ours, "ours.pth")), f"{authors.folder}/out/"
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--to-authors", "--first-release", path, folder])
    runpy.run_path(str(TOOL), run_name="__main__")
    written = torch.load(capsys.readouterr().out.splitlines()[1].removeprefix("written: "), weights_only=True)
    assert "patch_embed.proj.weight" in written["model"]


def test_what_is_converted_already(authors):
    path = authors.save({"state_dict": classifier_of(authors.model(out_indices=(3,)))})
    with pytest.raises(ValueError, match=r"has the names of this package already; --to-authors converts it back"):
        from_authors_file(path)


@pytest.mark.parametrize(
    ("destination", "message"),
    [("in.pth/out.pth", "cannot be written (File exists)"), ("x" * 300, "cannot be written (File name too long)")],
    ids=["in a file", "long"],
)
def test_unwritable_destination(authors, destination, message):
    authors.save({"model": authors.weights}, "in.pth")
    with pytest.raises(ValueError, match=re.escape(message)):
        save_named_by_hash({}, str(authors.folder / destination), "in.pth")


@pytest.mark.parametrize("destination", ["", "new/"], ids=["there", "new"])
def test_folder_as_destination(authors, destination):
    path = save_named_by_hash({}, f"{authors.folder}/{destination}", "https://host/msvmamba.pth?download=true")
    assert re.fullmatch(r"msvmamba-[0-9a-f]{8}\.pth", path.name)
    assert path.parent == authors.folder / destination
    assert list(path.parent.iterdir()) == [path]


def classifier_of(backbone):
    head = {"head.fc.weight": torch.ones(10, 48), "head.fc.bias": torch.ones(10)}
    return {**{f"backbone.{name}": value for name, value in backbone.state_dict().items()}, **head}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda authors: authors.weights, "has the authors' names already: convert it without --to-authors"),
        (lambda authors: authors.model().state_dict(), "holds no whole model with a backbone of mmmsv"),
        (
            lambda authors: {
                f"backbone.{name}": value
                for name, value in authors.model().state_dict().items()
                if name != "stages.1.blocks.0.scan.full_scan.skip"
            },
            "is not whole: 1 missing: backbone.stages.1.blocks.0.scan.full_scan.skip",
        ),
        (
            lambda authors: classifier_of(authors.model(out_indices=(0, 1))),
            "written as the authors do, does not fit .*unexpected: outnorm0.weight",
        ),
        (
            lambda authors: {**classifier_of(authors.model(out_indices=(3,))), "neck.weight": torch.ones(1)},
            "written as the authors do, does not fit .*1 unexpected: neck.weight",
        ),
        (
            lambda authors: classifier_of(MSVMamba({**SMALL, "full_routes": ("row",) * 6}, out_indices=(3,))),
            "block 0 of stage 0 has 7 parameter sets, which is no published choice of routes",
        ),
    ],
    ids=["theirs", "backbone", "not whole", "two output norms", "neck", "six routes"],
)
def test_what_cannot_go_back(authors, state, message):
    path = authors.save({"state_dict": state(authors)})
    with pytest.raises(ValueError, match=message):
        to_authors_file(path)
