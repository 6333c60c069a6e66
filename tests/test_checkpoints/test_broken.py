"""Broken, wrong and harmful checkpoints: one line that names the cause, and the model as it was.

Each through the weight initializer and through the converter.
"""

import functools
import http.server
import os
import pickle
import sys
import threading
import types
import zipfile
from argparse import Namespace
from pathlib import Path
from random import Random

import pytest
import torch

from mmmsv.checkpoints import AuthorsCheckpoint
from mmmsv.checkpoints.conversion import from_authors_file
from mmmsv.checkpoints.reading import read_checkpoint, weights_of
from mmmsv.checkpoints.translation import to_authors
from mmmsv.models import MSVMamba
from tests.test_models.golden import arch_of, load_golden

NORM = "layers.0.blocks.0.norm.weight"
PROJECTION = "layers.2.blocks.1.convFFN.linear1.weight"


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


def truncated(authors):
    path = authors.save({"model": authors.weights})
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def damaged(authors):
    """Bytes in the middle are changed, as by a bad disk."""
    path = authors.save({"model": authors.weights})
    with zipfile.ZipFile(path) as archive:
        pickled = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
    content = bytearray(path.read_bytes())
    content[pickled.header_offset + 200 : pickled.header_offset + 400] = b"\xff" * 200
    path.write_bytes(content)
    return path


class Harmful:
    """Pickles as a call that leaves a folder behind; the call decides how torch words its refusal."""

    def __init__(self, folder, call=os.mkdir):
        self.path, self.call = str(folder / "harm"), call

    def __reduce__(self):
        return self.call, (self.path if self.call is os.mkdir else f"__import__('os').mkdir({self.path!r})",)


HEAD, HEAD_BIAS = "classifier.head.weight", "classifier.head.bias"


def with_head(authors, weight=None, bias=None, **others):
    """A classifier's file with another head, or with a part of one."""
    rest = {name: value for name, value in authors.weights.items() if name not in (HEAD, HEAD_BIAS)}
    head = {name: value for name, value in ((HEAD, weight), (HEAD_BIAS, bias)) if value is not None}
    return authors.save({"model": {**rest, **head, **others}})


def torchscript(authors):
    path = authors.folder / "file.pth"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    return path


def harmful_pickle(authors):
    path = authors.folder / "file.pth"
    path.write_bytes(pickle.dumps({"model": Harmful(authors.folder)}, protocol=2))
    return path


def text(authors):
    path = authors.folder / "file.pth"
    path.write_text("<html><body>Sign in to Google Drive</body></html>")
    return path


def empty(authors):
    path = authors.folder / "file.pth"
    path.touch()
    return path


def photograph(_):
    return next(Path(__file__).parents[2].glob("data/coco_mini/**/*.jpg"))


def with_nan(authors):
    broken = authors.weights[PROJECTION].clone()
    broken[3, 2] = float("nan")
    return authors.save({"model": {**authors.weights, PROJECTION: broken}})


def eight_bit_floats(authors):
    if torch.__version__ < (2, 2):
        pytest.skip("torch 2.1 has 8-bit floats and cannot save them")
    return authors.save({"model": {**authors.weights, NORM: torch.ones(8).to(torch.float8_e4m3fn)}})


# What is made, what the initializer says of it, and what the converter says, where that is something else.
BROKEN = {
    "truncated": (truncated, "is cut off or damaged"),
    "damaged": (damaged, "damaged"),
    "missing tensor": (
        lambda authors: authors.save({"model": without(authors.weights, NORM)}),
        rf"1 missing: {NORM}\. It is incomplete: norm1.weight of block 0 of stage 0 is missing",
        "file.pth: norm1.weight of block 0 of stage 0 is missing or misshapen",
    ),
    "missing scan tensor": (
        lambda authors: authors.save({"model": without(authors.weights, "layers.2.blocks.1.op.Ds")}),
        r"1 missing: layers.2.blocks.1.op.Ds\. The arch is right, so the file is incomplete",
    ),
    "transposed": (
        lambda authors: authors.save(
            {"model": {**authors.weights, PROJECTION: authors.weights[PROJECTION][:, :, 0, 0].mT}}
        ),
        rf"1 of another shape: {PROJECTION} \(\(32, 128\) in the checkpoint, \(128, 32\) in the model",
    ),
    "extra tensor": (
        lambda authors: authors.save({"model": {**authors.weights, "layers.0.blocks.0.gamma": torch.ones(8)}}),
        r"1 unexpected: layers.0.blocks.0.gamma\. The arch is right",
    ),
    "NaN": (with_nan, f"NaN or infinite values in {PROJECTION}"),
    "photograph": (photograph, r"begins with b'\\xff\\xd8.*so it is no PyTorch checkpoint"),
    "empty": (empty, "is empty, so it is no PyTorch checkpoint"),
    "text": (text, "begins with b'<html>.*, so it is no PyTorch checkpoint: but a web page"),
    "harmful pickle": (harmful_pickle, "holds more than tensors and plain data.*mkdir.*could run any code"),
    "harmful zip": (
        lambda authors: authors.save({"model": authors.weights, "config": Harmful(authors.folder)}),
        "holds more than tensors and plain data.*mkdir.*could run any code",
    ),
    "list": (lambda authors: authors.save([authors.weights]), "holds a list, expected a dict"),
    "no weights": (
        lambda authors: authors.save({"optimizer": {"lr": 1.0}, "epoch": 3}),
        "holds no weights: no tensors by name, also not in model_ema, model, state_dict, but optimizer, epoch",
    ),
    "not a tensor": (
        lambda authors: authors.save({"model": {**authors.weights, NORM: [1.0]}}),
        f"{NORM} among the weights should be tensors",
    ),
    "integers": (
        lambda authors: authors.save({"model": {**authors.weights, NORM: torch.ones(8, dtype=torch.int8)}}),
        f"holds torch.int8 in {NORM}, expected floating point",
    ),
    "other model": (
        lambda authors: authors.save({"state_dict": {"layer1.0.conv1.weight": torch.ones(8, 8, 3, 3)}}),
        "1 unexpected: layer1.0.conv1.weight. It is of another kind of model",
        "no name is that of a block of MSVMamba or VMamba",
    ),
    "block far away": (
        lambda authors: authors.save(
            {"model": {**authors.weights, "layers.3.blocks.99999999.norm.weight": torch.ones(1)}}
        ),
        "1 unexpected: layers.3.blocks.99999999.norm.weight. It is incomplete: block 1 of stage 3 is missing",
        "file.pth: block 1 of stage 3 is missing",
    ),
    "stage far away": (
        lambda authors: authors.save(
            {"model": {**authors.weights, "layers.99999999.blocks.0.norm.weight": torch.ones(1)}}
        ),
        "It is incomplete: stage 4 is missing",
        "file.pth: stage 4 is missing",
    ),
    "no sets": (
        lambda authors: authors.save(
            {"model": {**authors.weights, "layers.0.blocks.0.op.dt_projs_bias": torch.ones(0, 8)}}
        ),
        "op.dt_projs_bias .*It is incomplete: op.dt_projs_bias of block 0 of stage 0 is missing or misshapen",
        "op.dt_projs_bias of block 0 of stage 0 is missing or misshapen",
    ),
    "harmful eval": (
        lambda authors: authors.save({"model": authors.weights, "args": Harmful(authors.folder, eval)}),
        "holds more than tensors and plain data .*eval.*could run any code",
    ),
    "settings of another kind": (
        lambda authors: authors.save({"model": authors.weights, "args": Namespace(lr=1.0)}),
        r"holds more than tensors and plain data \(argparse.Namespace\)",
    ),
    "TorchScript": (torchscript, "is a TorchScript archive, not weights"),
    "sparse tensor": (
        lambda authors: authors.save({"model": {**authors.weights, NORM: torch.ones(8).to_sparse()}}),
        f"a tensor of an unusual kind .*sparse.* in {NORM}",
    ),
    "8-bit floats": (
        eight_bit_floats,
        f"a tensor of an unusual kind .*float8.* in {NORM}",
    ),
    "tensor without memory": (
        lambda authors: authors.save({"model": {**authors.weights, NORM: torch.ones(8, device="meta")}}),
        f"a tensor of an unusual kind .*meta.* in {NORM}",
    ),
    "head without bias": (
        lambda authors: with_head(authors, torch.ones(10, 48)),
        "1 missing: classifier.head.bias",
    ),
    "no head": (with_head, "2 missing: classifier.head.weight, classifier.head.bias"),
    "transposed head": (
        lambda authors: with_head(authors, torch.ones(48, 10), torch.ones(10)),
        r"classifier.head.weight \(\(48, 10\) in the checkpoint, \(10, 48\) in the model",
    ),
    "head of other channels": (
        lambda authors: with_head(authors, torch.ones(10, 47), torch.ones(10)),
        "1 of another shape: classifier.head.w",
    ),
    "more than a head": (
        lambda authors: with_head(
            authors, torch.ones(10, 48), torch.ones(10), **{"classifier.head.scale": torch.ones(1)}
        ),
        "1 unexpected: classifier.head.scale",
    ),
    "detector without output norms": (
        lambda authors: authors.save(
            {"state_dict": {name: value for name, value in authors.dense().items() if "outnorm" not in name}}
        ),
        "missing: backbone.outnorm3.weight",
        "8 missing: backbone.outnorm0.weight",
    ),
    "two backbones": (
        lambda authors: authors.save({"state_dict": authors.dense(**{"layers.0.blocks.0.norm.weight": torch.ones(8)})}),
        "7 unexpected: backbone.outnorm0.weight",
        "1 unexpected: layers.0.blocks.0.norm.weight",
    ),
    "no such file": (lambda authors: authors.folder / "nothing.pth", "is not there; give the path"),
    "folder": (lambda authors: authors.folder, "is a folder; give the path"),
    "both layouts": (
        lambda authors: authors.save(
            {"model": {**authors.weights, "layers.0.blocks.0.op.x_proj.weight": torch.ones(6, 8)}}
        ),
        "unexpected: .*x_proj_weight",
    ),
}


def assert_one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1200


@pytest.mark.parametrize("broken", BROKEN)
def test_initializer(authors, broken):
    make, message, *_ = BROKEN[broken]
    path = make(authors)
    model = authors.model(out_indices=(3,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        AuthorsCheckpoint(path)(model)
    assert_one_line(error)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not (authors.folder / "harm").exists()


@pytest.mark.parametrize("broken", BROKEN)
def test_converter(authors, broken):
    make, *_, message = BROKEN[broken]
    with pytest.raises(ValueError, match=message) as error:
        from_authors_file(make(authors))
    assert_one_line(error)
    assert not (authors.folder / "harm").exists()


class TestRightFileForAnotherArch:
    """The message names the arch that the file is of."""

    def refused(self, model, path, message):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=message) as error:
            AuthorsCheckpoint(path)(model)
        assert_one_line(error)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_other_size(self, authors):
        model = MSVMamba({**arch_of(authors.meta), "embed_dims": (16, 32, 48, 64)})
        told = (
            r"The file is of mmmsv.MSVMamba, arch=dict\(embed_dims=\(8, 16, 32, 48\), .*: give the model that type and"
        )
        self.refused(model, authors.save({"model": authors.weights}), told)

    def test_published_name(self, authors):
        with torch.device("meta"):
            weights = {f"backbone.{name}": value for name, value in MSVMamba("nano").state_dict().items()}
        theirs = {
            name: torch.zeros(value.shape) for name, value in to_authors(weights, MSVMamba.archs["nano"], False).items()
        }
        self.refused(
            authors.model(),
            authors.save({"state_dict": theirs}),
            "The file is of mmmsv.MSVMamba, arch='nano': give the",
        )

    def test_other_family(self, authors):
        golden = load_golden("arxiv.pt")
        path = authors.save({"model": golden["model"]})
        self.refused(
            authors.model(),
            path,
            r"missing: patch_embed.5.weight.*unexpected.*The file is of mmmsv.MSVMamba, arch=dict",
        )

    def test_same_shapes_with_norms_elsewhere(self, authors):
        model = MSVMamba({**arch_of(authors.meta), "fusion": "norm_first"})
        path = authors.save({"model": authors.weights})
        self.refused(model, path, "fusion='norm_last' and ffn_norm='post', as its stem tells; stage 0 of the model has")

    def test_other_channels(self, authors):
        path = authors.save({"model": authors.weights})
        self.refused(authors.model(in_channels=4), path, r"patch_embed.0.weight.*or in_channels is another")

    def test_our_own_names(self, authors):
        path = authors.save({"state_dict": authors.model().state_dict()})
        self.refused(
            authors.model(),
            path,
            r"is a checkpoint of MMEngine's already: load it with init_cfg=dict\(type='Pretrained'.*prefix='backbone.'",
        )


def test_settings_of_vmambas_training_are_read_as_plain_data(authors, monkeypatch):
    """Its files hold a yacs CfgNode beside the weights: harmless, and refusing it would refuse the file."""
    CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    package.config, module.CfgNode = module, CfgNode
    monkeypatch.setitem(sys.modules, "yacs", package)
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    settings = CfgNode(MODEL=CfgNode(DROP_PATH_RATE=0.2))
    settings.__dict__["__immutable__"] = True
    path = authors.save({"model": authors.weights, "config": settings})
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    AuthorsCheckpoint(path)(authors.model())
    with pytest.raises(pickle.UnpicklingError):  # allowed while it is read, and no longer
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("zipped", [True, False])
def test_bytes_lost_or_changed_anywhere(authors, zipped):
    """Whatever torch trips over, it is told in one line; bytes inside a tensor cannot be told."""
    path, random = authors.folder / "file.pth", Random(0)
    torch.save({"model": dict(list(authors.weights.items())[:8])}, path, _use_new_zipfile_serialization=zipped)
    whole, told = path.read_bytes(), []
    for attempt in range(60):
        content = bytearray(whole)
        if attempt % 3:
            for place in random.choices(range(len(content)), k=attempt):
                content[place] = random.randrange(256)
        else:
            content = content[: random.randrange(len(content))]
        path.write_bytes(content)
        try:
            weights_of(read_checkpoint(path), path)
        except ValueError as error:
            told.append(str(error))
    assert len(told) > 30
    assert not any("\n" in message for message in told)


class TestDownload:
    @pytest.fixture
    def served(self, authors, tmp_path, monkeypatch):
        """A server on this machine, and an empty folder for what torch.hub keeps."""

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                """Say nothing."""

        folder = tmp_path / "served"
        folder.mkdir()
        authors.folder = folder
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()

    def test_is_kept(self, authors, served):
        path = authors.save({"model": authors.weights}, "msvmamba.pth")
        AuthorsCheckpoint(f"{served}/msvmamba.pth")(authors.model())
        path.unlink()
        model = authors.model(out_indices=(3,))
        AuthorsCheckpoint(f"{served}/msvmamba.pth")(model)
        assert torch.equal(model.stem.conv1.weight, authors.weights["patch_embed.0.weight"])

    def test_files_of_one_name_are_two(self, authors, served):
        for folder, offset in (("a", 0), ("b", 1)):
            (authors.folder / folder).mkdir()
            authors.save({"model": {k: v + offset for k, v in authors.weights.items()}}, f"{folder}/checkpoint.pth")
            model = authors.model(out_indices=(3,))
            AuthorsCheckpoint(f"{served}/{folder}/checkpoint.pth")(model)
            assert torch.equal(model.stem.conv1.weight, authors.weights["patch_embed.0.weight"] + offset)

    def test_what_was_cut_short_is_fetched_again(self, authors, served):
        path = authors.save({"model": authors.weights}, "msvmamba.pth")
        whole = path.read_bytes()
        path.write_bytes(whole[:5000])
        with pytest.raises(ValueError, match="cut off or damaged"):
            AuthorsCheckpoint(f"{served}/msvmamba.pth")(authors.model())
        path.write_bytes(whole)
        AuthorsCheckpoint(f"{served}/msvmamba.pth")(authors.model())

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/nothing.pth", r"nothing.pth could not be downloaded \(HTTP Error 404: File not found\)"),
            ("/with space.pth", "could not be downloaded .*can't contain control characters"),
            ("", "is no URL of a file: it names none"),
        ],
    )
    def test_not_there(self, authors, served, path, message):
        with pytest.raises(ValueError, match=message) as error:
            AuthorsCheckpoint(served + path)(authors.model())
        assert_one_line(error)


@pytest.mark.parametrize("path", ["http://[::1/x.pth", "~nobody-of-this-name/x.pth", "x" * 5000])
def test_paths_that_are_none(authors, path):
    with pytest.raises(ValueError, match=r"is no URL of a file|is not there|cannot be looked for") as error:
        AuthorsCheckpoint(path)(authors.model())
    assert "\n" not in str(error.value)
