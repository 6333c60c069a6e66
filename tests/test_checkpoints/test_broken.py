"""Broken, wrong and harmful checkpoints, each through the weight initializer and through the converter."""

import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from mmmsv.checkpoints.conversion import from_authors_file

from .refusals import assert_refused, refused

NORM = "layers.0.blocks.0.norm.weight"
PROJECTION = "layers.2.blocks.1.convFFN.linear1.weight"
HEAD, HEAD_BIAS = "classifier.head.weight", "classifier.head.bias"


def whole(checkpoint):
    return lambda authors: authors.save(checkpoint)


def changed(name, value):
    return lambda authors: authors.save({"model": {**authors.weights, name: value}})


def without(*names):
    return lambda authors: authors.save(
        {"model": {name: value for name, value in authors.weights.items() if name not in names}}
    )


def written(content):
    def write(authors):
        path = authors.folder / "file.pth"
        path.write_bytes(content)
        return path

    return write


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


def torchscript(authors):
    path = authors.folder / "file.pth"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    return path


def harmful_pickle(authors):
    return written(pickle.dumps({"model": Harmful(authors.folder)}, protocol=2))(authors)


def photograph(_):
    return next(Path(__file__).parents[2].glob("data/coco_mini/**/*.jpg"))


def with_nan(authors):
    broken = authors.weights[PROJECTION].clone()
    broken[3, 2] = float("nan")
    return changed(PROJECTION, broken)(authors)


def eight_bit_floats(authors):
    if torch.__version__ < (2, 2):
        pytest.skip("torch 2.1 has 8-bit floats and cannot save them")
    return changed(NORM, torch.ones(8).to(torch.float8_e4m3fn))(authors)


# What is made, what the initializer says of it, and what the converter says, where that is something else.
BROKEN = {
    "truncated": (truncated, "is cut off or damaged"),
    "damaged": (damaged, "damaged"),
    "missing tensor": (
        without(NORM),
        rf"1 missing: {NORM}\. It is incomplete: norm1.weight of block 0 of stage 0 is missing",
        "file.pth: norm1.weight of block 0 of stage 0 is missing or misshapen",
    ),
    "missing scan tensor": (
        without("layers.2.blocks.1.op.Ds"),
        r"1 missing: layers.2.blocks.1.op.Ds\. The arch is right, so the file is incomplete",
    ),
    "transposed": (
        lambda authors: changed(PROJECTION, authors.weights[PROJECTION][:, :, 0, 0].mT)(authors),
        rf"1 of another shape: {PROJECTION} \(\(32, 128\) in the checkpoint, \(128, 32\) in the model",
    ),
    "extra tensor": (
        changed("layers.0.blocks.0.gamma", torch.ones(8)),
        r"1 unexpected: layers.0.blocks.0.gamma\. The arch is right",
    ),
    "NaN": (with_nan, f"NaN or infinite values in {PROJECTION}"),
    "photograph": (photograph, r"begins with b'\\xff\\xd8.*so it is no PyTorch checkpoint"),
    "empty": (written(b""), "is empty, so it is no PyTorch checkpoint"),
    "text": (
        written(b"<html><body>Sign in to Google Drive</body></html>"),
        "is a web page, no PyTorch checkpoint; get the file that the page links to$",
    ),
    "harmful pickle": (harmful_pickle, "holds more than tensors and plain data.*mkdir.*could run any code"),
    "harmful zip": (
        lambda authors: authors.save({"model": authors.weights, "config": Harmful(authors.folder)}),
        "holds more than tensors and plain data.*mkdir.*could run any code",
    ),
    "list": (lambda authors: authors.save([authors.weights]), "holds a list, expected a dict"),
    "no weights": (
        whole({"optimizer": {"lr": 1.0}, "epoch": 3}),
        "holds no weights of MSVMamba or VMamba, but optimizer, epoch; give a file that holds the model's state_dict",
    ),
    "not a tensor": (changed(NORM, [1.0]), f"{NORM} among the weights should be tensors"),
    "integers": (
        changed(NORM, torch.ones(8, dtype=torch.int8)),
        f"holds torch.int8 in {NORM}, expected floating point",
    ),
    "other model": (
        whole({"state_dict": {"layer1.0.conv1.weight": torch.ones(8, 8, 3, 3)}}),
        "1 unexpected: layer1.0.conv1.weight. It is of another kind of model",
        "no name is that of a block of MSVMamba or VMamba",
    ),
    "block far away": (
        changed("layers.3.blocks.99999999.norm.weight", torch.ones(1)),
        "1 unexpected: layers.3.blocks.99999999.norm.weight. It is incomplete: block 1 of stage 3 is missing",
        "file.pth: block 1 of stage 3 is missing",
    ),
    "stage far away": (
        changed("layers.99999999.blocks.0.norm.weight", torch.ones(1)),
        "It is incomplete: stage 4 is missing",
        "file.pth: stage 4 is missing",
    ),
    "no sets": (
        changed("layers.0.blocks.0.op.dt_projs_bias", torch.ones(0, 8)),
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
    "sparse tensor": (changed(NORM, torch.ones(8).to_sparse()), f"a tensor of an unusual kind .*sparse.* in {NORM}"),
    "8-bit floats": (eight_bit_floats, f"a tensor of an unusual kind .*float8.* in {NORM}"),
    "tensor without memory": (
        changed(NORM, torch.ones(8, device="meta")),
        f"a tensor of an unusual kind .*meta.* in {NORM}",
    ),
    "head without bias": (without(HEAD_BIAS), "1 missing: classifier.head.bias"),
    "no head": (without(HEAD, HEAD_BIAS), "2 missing: classifier.head.weight, classifier.head.bias"),
    "transposed head": (
        changed(HEAD, torch.ones(48, 10)),
        r"classifier.head.weight \(\(48, 10\) in the checkpoint, \(10, 48\) in the model",
    ),
    "head of other channels": (
        changed(HEAD, torch.ones(10, 47)),
        "1 of another shape: classifier.head.w",
    ),
    "more than a head": (
        changed("classifier.head.scale", torch.ones(1)),
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
    "both layouts": (changed("layers.0.blocks.0.op.x_proj.weight", torch.ones(6, 8)), "unexpected: .*x_proj_weight"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_initializer(authors, broken):
    make, message, *_ = BROKEN[broken]
    assert_refused(authors.model(out_indices=(3,)), make(authors), message)
    assert not (authors.folder / "harm").exists()


@pytest.mark.parametrize("broken", BROKEN)
def test_converter(authors, broken):
    make, *_, message = BROKEN[broken]
    with refused(message):
        from_authors_file(make(authors))
    assert not (authors.folder / "harm").exists()
