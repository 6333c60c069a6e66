"""The routes that are drawn are those of the op; the animation has each visit once."""

import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmmsv.analysis.figures.scan_routes import draw
from mmmsv.analysis.routes import grid_sequences
from mmmsv.analysis.scans import record_sequences
from mmmsv.kernels import scan2d
from mmmsv.kernels.routes import unroll
from tests.test_tools.load import load_tool

from .small import HALF_SS2D, SS2D, small_network

SCANS = {"SS2D": SS2D, "MS2D": {}, "HalfSS2D": HALF_SS2D}


def visits_so_far(routes: tuple[str, ...], size: tuple[int, int]) -> np.ndarray:
    """How often each token (first axis) was visited when each route (second) comes to each token (third): from the op.

    Each token in turn has the input 1; with steps and projections of 1 and no decay, the output is the sum up to there.
    """
    tokens = size[0] * size[1]
    x = torch.eye(tokens).view(tokens, *size, 1)
    per_token, weight = torch.ones(tokens, *size, 1, 1), torch.zeros(1, 1, 1)
    step = torch.full((1, 1), float(np.log(np.e - 1)))  # softplus of it is 1
    y = scan2d(
        x, per_token, per_token, per_token, weight, step, weight, torch.zeros(1, 1), routes, len(routes) > 1, False
    )
    return y.reshape(tokens, len(routes), tokens).numpy().round()


@pytest.mark.parametrize("scan", SCANS)
def test_the_order_is_that_of_the_op(scan):
    for sequence in grid_sequences(small_network(**SCANS[scan]).scan(0, 0), 6, 5):
        orders = [tokens @ (sequence.size[1], 1) for tokens in sequence.tokens]
        so_far = visits_so_far(sequence.routes, sequence.size)
        for route, order in enumerate(orders):
            # Each route before has visited all tokens once; on this one a token counts from its own visit on.
            expected = route + np.triu(np.ones((len(order), len(order))))
            assert np.array_equal(so_far[order][:, route, order], expected)


@pytest.mark.parametrize("scan", SCANS)
def test_sequences_are_those_of_a_network(scan):
    """On a map with odd sides: its half is rounded up."""
    network = small_network(**SCANS[scan])
    recorded = record_sequences(network, torch.zeros(1, 3, 20, 28), 0, 0)
    drawn = grid_sequences(network.scan(0, 0), 5, 7)
    for one, other in zip(drawn, recorded, strict=True):
        assert (one.routes, one.stride, one.size) == (other.routes, other.stride, other.size)
        assert one.length == len(one.routes) * one.size[0] * one.size[1]


def test_panels_show_the_places():
    """Those of the carried sequence go on from panel to panel."""
    scan = small_network().scan(0, 0)
    figure = draw({"MS2D": scan}, 8, 6)
    panels = [axes for axes in figure.axes if axes.images]
    routes = [*scan.full_scan.routes, *scan.half_scan.routes]
    for axes, route, begin in zip(panels, routes, (0, 0, 12, 24), strict=True):
        places = torch.as_tensor(axes.images[0].get_array().filled())
        walk = unroll(places[None, ..., None], (route,)).flatten()
        assert walk.tolist() == list(range(begin + 1, begin + len(walk) + 1))
        assert axes.get_title().endswith(f"{route}, {begin + 1} to {begin + len(walk)}")
        assert axes.get_xlim() == (-0.5, 5.5)
    starts_and_ends = [[line.get_marker() for line in axes.lines if line.get_marker() in ("o", "s")] for axes in panels]
    assert starts_and_ends == [["o", "s"], ["o"], [], ["s"]]


def test_marks_are_on_the_grid_where_a_token_covers_less_of_it():
    """Of 5 x 7 tokens the last ones of a third of the resolution cover 2 rows, and 1 column."""
    figure = draw({"MS2D": small_network(half_stride=3).scan(0, 0)}, 5, 7)
    panel = [axes for axes in figure.axes if axes.images][1]
    assert panel.get_title() == "row_rev, 1 to 6"
    (start,) = (line for line in panel.lines if line.get_marker() == "o")
    assert start.get_xydata().tolist() == [[6.0, 3.5]]


def test_a_map_of_one_token():
    scan = small_network(half_stride=7).scan(0, 0)
    assert [sequence.length for sequence in grid_sequences(scan, 4, 4)] == [16, 3]
    draw({"one": scan}, 4, 4)


@pytest.mark.parametrize("grid", [(3, 6), (8, 13)])
def test_grids_that_cannot_be_read(grid):
    message = f"the grid is {grid[0]} x {grid[1]} tokens, expected 4 to 12 rows and 4 to 12 columns, such as 8 x 6"
    with pytest.raises(ValueError, match=re.escape(message)):
        grid_sequences(small_network().scan(0, 0), *grid)


def test_the_tool(tmp_path):
    tool = load_tool("scan_routes")
    still, animation = tool.make(Namespace(model=["nano"], stage=0, grid=(4, 4), out=tmp_path))
    with np.load(still.with_suffix(".npz")) as arrays:
        assert arrays["0_sequence1_routes"].tolist() == ["row_rev", "col", "col_rev"]
        assert arrays["0_sequence1_tokens"][:4].tolist() == [[1, 1], [1, 0], [0, 1], [0, 0]]
    assert still.with_suffix(".svg").exists()
    with Image.open(animation) as picture:
        assert (picture.width, picture.n_frames, picture.info["loop"]) == (900, 17, 0)
        empty = []
        for frame in range(picture.n_frames):
            picture.seek(frame)
            empty.append(int((np.asarray(picture.convert("RGB")) == 0xD9).all(-1).sum()))
    assert empty[:-1] == sorted(set(empty[:-1]), reverse=True)
    assert animation.stat().st_size < 3e5
    with pytest.raises(ValueError, match="resnet18 has no scan: it is a ResNet; give an arch or a config of MSVMamba"):
        tool.make(Namespace(model=["resnet18"], stage=0, grid=(4, 4), out=tmp_path))
    with pytest.raises(ValueError, match="MSVMamba nano has no stage 4: it has 4, so give 0 to 3, or -1 for the last"):
        tool.make(Namespace(model=["nano"], stage=4, grid=(4, 4), out=tmp_path))


def test_two_models_of_one_name_are_refused(tmp_path):
    args = Namespace(model=["nano", "MSVMamba:nano"], stage=0, grid=(8, 6), out=tmp_path)
    with pytest.raises(ValueError, match="--model names 2, of which 1 have names of their own; give each once"):
        load_tool("scan_routes").make(args)
