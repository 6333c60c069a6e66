"""What figures share on the command line: which networks they are of."""

from argparse import Namespace

import pytest

from mmmsv.analysis import command_line
from mmmsv.analysis.command_line import figure_parser, load_networks, run
from mmmsv.analysis.networks import Network

from .small import small_network


@pytest.fixture
def small(monkeypatch):
    """Networks that are named as they would be, and not loaded."""
    model = small_network().model

    def load_network(name, checkpoint=None):
        return Network(name, "random weights" if checkpoint is None else checkpoint.rpartition("/")[2], model)

    monkeypatch.setattr(command_line, "load_network", load_network)


def titles(model, checkpoint=None, before_training=False) -> list[str]:
    return [network.title for network in load_networks(Namespace(model=model, checkpoint=checkpoint), before_training)]


def test_a_checkpoint_for_each_model(small):
    assert titles(["a", "b"]) == ["a, random weights", "b, random weights"]
    assert titles(["a", "a"], ["none", "x/1.pth"]) == ["a, random weights", "a, 1.pth"]
    with pytest.raises(ValueError, match="--model names 2 and --checkpoint 1: give one checkpoint for each model, or"):
        titles(["a", "b"], ["x/1.pth"])


def test_two_networks_of_one_title_would_be_one_line_of_a_figure(small):
    with pytest.raises(ValueError, match=r"several networks would be called 'a, 1\.pth' in the figure: give each once"):
        titles(["a", "a"], ["x/1.pth", "y/1.pth"])


def test_a_network_of_several_checkpoints_is_shown_once_before_training(small):
    assert titles(["a", "a"], ["x/1.pth", "x/2.pth"], before_training=True) == [
        "a, random weights",
        "a, 1.pth",
        "a, 2.pth",
    ]
    assert titles(["a", "a"], ["none", "x/1.pth"], before_training=True) == ["a, random weights", "a, 1.pth"]
    with pytest.raises(ValueError, match="several networks would be called 'a, random weights' in the figure"):
        titles(["a", "a"], before_training=True)


def test_a_folder_that_is_a_file_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "out").write_text("")
    monkeypatch.setattr("sys.argv", ["x", "--model", "nano", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"--out .*out is a file, expected a folder"):
        run(figure_parser("", "x", photographs=False), lambda args: pytest.fail("made"))
