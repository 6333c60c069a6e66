"""A report has every section, and says in it what cannot be shown."""

import io
import shlex
from argparse import Namespace
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..test_tools.load import load_tool
from .pages import Page, read_page
from .small import photograph

SECTIONS = [
    *("Network", "Photograph", "Scan routes", "Decay", "Attention"),
    *("Receptive field", "Features", "Class activation", "Scaling"),
]
CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmmsv.MSVMamba', arch=dict(base='nano', embed_dims=(8, 16), depths=(1, 1)), out_indices=(1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs") / "a & b.png"
    Image.fromarray(photograph(height=32).pixels).save(path)
    return path


@pytest.fixture(scope="module")
def report(path, tmp_path_factory):
    """Of a small classifier beside a network without scans, and what they were loaded from."""
    pytest.importorskip("mmpretrain")
    folder = tmp_path_factory.mktemp("report")
    config = folder / "small.py"
    config.write_text(CLASSIFIER)
    models = [str(config), "resnet18"]
    (page,) = make(photographs=path, model=models, query=[3, 5], out=folder / "out")
    assert page == folder / "out/report.html"
    return read_page(page.read_text()), models


def make(**args: object) -> list[Path]:
    """Run the tool."""
    return load_tool("report").make(Namespace(**{"checkpoint": None, "size": 64, "query": None, **args}))


def notes(page: Page) -> list[str]:
    return [text for text in page.texts["p"] if text.startswith("Not shown")]


def test_every_section_is_there(report):
    page, _ = report
    assert page.texts["h2"] == SECTIONS
    assert len(page.links) == len(SECTIONS) == len(page.ids)
    assert page.texts["title"] == ["small, random weights; resnet18, random weights: a & b"]


def test_pictures_are_whole(report):
    page, _ = report
    # One for each section but the table, two of decay, and one of features for each network with a backbone of ours.
    assert len(page.images) == len(SECTIONS)
    for image in page.images:
        picture = Image.open(io.BytesIO(b64decode(image["src"].partition("base64,")[2])))
        picture.load()
        assert np.allclose(picture.size, (2 * int(image["width"]), 2 * int(image["height"])), atol=1)
        assert np.asarray(picture.convert("L")).std() > 0
        assert image["alt"].endswith(".")


def test_settings_are_listed(report):
    page, _ = report
    # Three titles of columns come before those of the rows, and each row has a cell for each network.
    cells = dict(zip(page.texts["th"][3:], page.texts["td"][::2], strict=True))
    assert cells["embed_dims"] == "8, 16"
    assert cells["full_routes"] == "row"
    assert cells["half_routes"] == "row_rev, col, col_rev"


def test_a_network_without_scans_is_said_to_have_none(report):
    page, _ = report
    assert [text for text in notes(page) if "resnet18 has no scan: it is a ResNet" in text] == [
        "Not shown: resnet18 has no scan: it is a ResNet; give an arch or a config of MSVMamba or VMamba."
    ] * 5  # settings, routes, decay, attention, features
    assert len(notes(page)) == 6
    assert "resnet18 has no backbone" in notes(page)[-1]


def test_commands_make_the_same_of_the_networks_that_are_shown(report, path):
    page, models = report
    lines = [shlex.split(line) for line in "\n".join(page.texts["code"]).splitlines()]
    assert all(words[:5] == ["python", "-m", "mim", "run", "mmmsv"] for words in lines)
    commands = {words[5]: words[6:] for words in lines}
    both, ours = ["--model", *models], ["--model", models[0]]
    query = ["--query", "3", "5"]
    assert commands == {
        "get_flops": [models[0], "--shape", "32", "64"],
        "scan_routes": [*ours, "--grid", "8", "6"],
        "decay_map": [str(path), *ours, "--size", "64", "--stage", "-1", "--block", "-1", *query],
        "attention_map": [str(path), *ours, "--size", "64", "--stage", "1", "--block", "-1", *query],
        "receptive_field": [str(path), *both, "--size", "64"],
        "feature_map": [str(path), *ours, "--size", "64", *query],
        "cam": [str(path), *ours, "--size", "64"],
        "scaling": [*both, "--no-speed"],
    }


def test_a_query_outside_is_an_error_before_anything_is_made(path, tmp_path):
    with pytest.raises(ValueError, match=r"the query \(64, 0\) is outside a & b, which is 64 x 32 pixels"):
        make(photographs=path, model=["nano"], query=[64, 0], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_is_of_one_photograph(path, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"a report is of one photograph, and .* holds 2: give one of them"):
        make(photographs=tmp_path, model=["nano"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
