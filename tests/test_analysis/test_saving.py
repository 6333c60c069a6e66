"""The same figure and arrays give the same files."""

import numpy as np
import pytest

from mmmsv.analysis.figures.photograph import draw
from mmmsv.analysis.figures.saving import save

from .small import photograph


def test_the_same_content_gives_the_same_files(tmp_path):
    arrays = {"values": np.arange(3), "networks": ["one", "two"]}
    contents = []
    for folder in ("a", "b"):
        path = save(draw(photograph(), (3, 5)), arrays, tmp_path / folder, "noise")
        assert path == tmp_path / folder / "noise.png"
        contents.append({each.name: each.read_bytes() for each in path.parent.iterdir()})
    assert sorted(contents[0]) == ["noise.npz", "noise.png", "noise.svg"]
    assert contents[0] == contents[1]
    assert b"<dc:date>" not in contents[0]["noise.svg"]  # else those of another second would differ


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match=r"file cannot be written to \(.*\); give another folder"):
        save(draw(photograph(), (3, 5)), {}, tmp_path / "file", "noise")
    assert (tmp_path / "file").read_text() == "kept"
