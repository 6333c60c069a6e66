"""The gallery shows pictures that are there, and has the commands and the table of ``make gallery``."""

import re
import shlex

import pytest

from benchmarks.gallery import claim, page
from mmmsv.analysis.networks import Network
from tests.test_analysis.small import SS2D, small_network

TOOLS = {"scan_routes", "decay_map", "attention_map", "receptive_field", "feature_map", "cam", "scaling"}


def test_each_picture_is_there_and_comes_from_a_command():
    folders = {match for command in page.commands() for match in re.findall(r"--out work_dirs/gallery/(\w+)", command)}
    assert page.pictures()
    for name in page.pictures():
        assert (page.PICTURES / name).is_file(), name
        assert name.partition("/")[0] in folders, name
    assert {path.relative_to(page.PICTURES).as_posix() for path in page.PICTURES.rglob("*.*")} == set(page.pictures())


def test_commands_name_what_is_there():
    words = [word for command in page.commands() for word in shlex.split(command)]
    files = [word for word in words if word.startswith(("tools/", "configs/", "data/"))]
    assert {word.removeprefix("tools/").removesuffix(".py") for word in files if word.startswith("tools/")} == TOOLS
    assert [word for word in files if not (page.ROOT / word).exists()] == []


def test_tables_are_put_between_their_comments():
    text = page.with_tables({"claim": "| a |"})
    assert "<!-- begin claim, written by make gallery -->\n\n| a |\n\n<!-- end claim -->" in text
    assert page.with_tables({"claim": "| a |"}).count("| a |") == 1
    with pytest.raises(ValueError, match=r"docs/gallery\.md has comments for the table claim, expected one of other"):
        page.with_tables({"other": ""})


def test_the_claim_is_measured_for_each_stage(monkeypatch):
    monkeypatch.setattr(claim, "NUMBER", 10)  # one photograph of each class
    four = {"embed_dims": (8,) * 4, "depths": (1,) * 4}
    networks = {
        name: Network(name, "", small_network(**four, **arch).model) for name, arch in (("SS2D", SS2D), ("MS2D", {}))
    }
    rows = list(claim.measure(networks, page.ROOT / "data/clothing_mini/val", [64]))
    assert [(row.size, row.stage, row.side) for row in rows] == [(64, 0, 16), (64, 1, 8), (64, 2, 4), (64, 3, 2)]
    assert all(0 <= share <= 1 for row in rows for share in row.shares.values())
    table = claim.as_markdown(rows).splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| 64 | 0 | 16 x 16 | ")
    on_page = re.search(r"<!-- begin claim.*?-->\n\n(.*?)\n\n<!-- end", page.PAGE.read_text(), re.DOTALL)
    assert on_page[1].splitlines()[:2] == table[:2]
