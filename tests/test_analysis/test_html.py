"""The page of a report is whole: well-formed, escaped, and in need of nothing from a network."""

from base64 import b64decode

import pytest

from mmmsv.analysis.figures.html import Picture, Section, Table, render
from mmmsv.analysis.figures.saving import as_bytes
from mmmsv.analysis.figures.style import new_figure

from .pages import read_page

EVIL = "<script>alert('&amp;')</script> \" {style}"


@pytest.fixture(scope="module")
def png():
    return as_bytes(new_figure("", 0.5, width=1.0), "png", density=2)


def test_the_page_has_all_parts(png):
    first = Section("What it shows.", Table(["", "a"], [["x", "1"]]), [Picture(png, "a map")], commands=["make it"])
    page = read_page(
        render("A title", "An introduction.", {"First part": first, "Second": Section("More.", notes=["no map"])})
    )
    assert page.texts["h1"] == page.texts["title"] == ["A title"]
    assert page.texts["h2"] == ["First part", "Second"]
    assert page.links == ["#first-part", "#second"]
    assert page.ids == ["first-part", "second"]
    assert page.texts["td"] == ["1"]
    assert page.texts["code"] == ["make it"]
    assert "Not shown: no map." in page.texts["p"]
    assert [(image["alt"], image["width"], image["height"]) for image in page.images] == [("a map", "130", "65")]
    assert b64decode(page.images[0]["src"].partition("base64,")[2]) == png


def test_what_is_inserted_is_escaped(png):
    section = Section(EVIL, Table([EVIL], [[EVIL, EVIL]]), [Picture(png, EVIL)], [EVIL], [EVIL])
    page = read_page(render(EVIL, EVIL, {EVIL: section}))
    assert "script" not in page.texts
    for tag in ("title", "h1", "h2", "a", "th", "td", "code"):
        assert {*page.texts[tag]} == {EVIL}, tag
    assert page.images[0]["alt"] == EVIL


def test_the_page_names_its_language_and_loads_nothing(png):
    html = render("A title", "", {"First": Section("", pictures=[Picture(png, "a map")])})
    page = read_page(html)
    assert page.language == "en"
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    assert "default-src 'none'" in html
    assert "url(" not in html
    assert "://" not in html
