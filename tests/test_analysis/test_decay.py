"""The decay along a route is that of the formula, and its maps, ratios and means are made of it as documented."""

import itertools
import math
import warnings
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmmsv.analysis import scans
from mmmsv.analysis.decay import AxisDecay, RouteDecay, decay_maps, join_axes, log_decay
from mmmsv.analysis.figures import decay_map as figures
from mmmsv.analysis.networks import load_network
from mmmsv.analysis.scans import Sequence, Walk, enlarge, record_sequences
from tests.test_tools.load import load_tool

from .small import HALF_SS2D, SS2D, photograph, sequence, small_network

INF = math.inf


def test_two_tokens_by_hand():
    one = torch.ones(1, 2, 1)
    step = torch.tensor([[[0.7], [0.25]]])
    tokens = Sequence(("row",), (1, 2), 1, one, step, one, one, torch.tensor([[-2.0]]), torch.ones(1))
    # Only the step of the second token is made on the way from the first one.
    assert log_decay(tokens, (0, 1), 0).tolist() == [[[-2.0 * 0.25, 0.0]]]
    assert log_decay(tokens, (0, 0), 0).tolist() == [[[0.0, -INF]]]


def by_hand(tokens: Sequence, token: tuple[int, int], route: int) -> np.ndarray:
    """Mean decay of each visit, one after the other."""
    height, width = tokens.size
    order = {
        "row": [(i, j) for i in range(height) for j in range(width)],
        "col": [(i, j) for j in range(width) for i in range(height)],
    }
    order |= {f"{name}_rev": walk[::-1] for name, walk in order.items()}
    walk = [(k, *at) for k in range(route + 1) for at in order[tokens.routes[k]]]
    walk = walk[: walk.index((route, *token)) + 1]
    maps = np.zeros((route + 1, height, width))
    for t, visit in enumerate(walk):
        steps = sum((tokens.step[i, j] for _, i, j in walk[t + 1 :]), torch.zeros(len(tokens.skip)))
        maps[visit] = (steps[:, None] * tokens.A).exp().mean()
    return maps


@pytest.mark.parametrize("routes", [("row",), ("col_rev",), ("row_rev", "col", "col_rev")], ids="-".join)
@pytest.mark.parametrize("at_a_time", [1, 1 << 23])
def test_every_visit_is_as_by_hand(routes, at_a_time, monkeypatch):
    monkeypatch.setattr(scans, "_AT_A_TIME", at_a_time)  # one channel at a time, or all
    tokens = sequence(3, 4, routes)
    for route, token in itertools.product(range(len(routes)), [(0, 0), (1, 2), (2, 3)]):
        maps = log_decay(tokens, token, route).exp().numpy()
        np.testing.assert_allclose(maps, by_hand(tokens, token, route), rtol=1e-12)


def test_long_routes_do_not_underflow():
    tokens = sequence(96, 64, ("row",), channels=1, states=1)
    far = log_decay(tokens, (95, 63), 0)[0, 0, 0].item()
    assert far == pytest.approx((tokens.step.sum() - tokens.step[0, 0]).item() * tokens.A.item(), rel=1e-12)
    assert math.exp(far) == 0  # what would be left of it


@pytest.mark.parametrize("token", [(3, 0), (-1, 0), (0, 4)], ids=str)
def test_a_token_or_a_route_that_is_not_there(token):
    tokens = sequence(3, 4, ("row",))
    with pytest.raises(ValueError, match=r"there is no token \(.*\) on a map of 3 x 4"):
        log_decay(tokens, token, 0)
    with pytest.raises(ValueError, match="there is no route 1: the sequence has 1"):
        log_decay(tokens, (0, 0), 1)


@pytest.mark.parametrize(
    ("arch", "found"),
    [
        ({}, [(("row",), 1, (16, 24)), (("row_rev", "col", "col_rev"), 2, (8, 12))]),
        (SS2D, [((route,), 1, (16, 24)) for route in SS2D["full_routes"]]),
        (HALF_SS2D, [((route,), 2, (8, 12)) for route in HALF_SS2D["half_routes"]]),
    ],
    ids=["MS2D", "SS2D", "HalfSS2D"],
)
def test_sequences_of_a_block(arch, found):
    network = small_network(**arch)
    recorded = record_sequences(network, network.prepare([photograph(height=64, width=96)]), 0, 0)
    assert [(one.routes, one.stride, one.size) for one in recorded] == found
    assert all(one.full_size == (16, 24) for one in recorded)
    assert not any(module._forward_pre_hooks for module in network.model.modules())  # none is left


def test_a_token_of_lower_resolution_is_the_one_over_the_pixel():
    tokens = sequence(4, 6, ("row",))
    half = Sequence(("row",), (8, 12), 2, *(getattr(tokens, name) for name in ("x", "step", "B", "C", "A", "skip")))
    assert half.token_at((63, 50), (64, 96)) == (3, 3)
    mark = torch.zeros(4, 6)
    mark[3, 3] = 1
    assert enlarge(mark, 2, (8, 12)).nonzero().tolist() == [[6, 6], [6, 7], [7, 6], [7, 7]]
    assert enlarge(mark, 2, (7, 11)).shape == (7, 11)


def test_maps_are_averaged_over_photographs():
    network, photographs = small_network(), [photograph(seed=seed) for seed in (0, 1)]
    both = decay_maps(network, photographs, -1, -1, (40, 8))
    single = [decay_maps(network, [each], -1, -1, (40, 8)) for each in photographs]
    assert [each.route for each in both] == ["row", "row_rev", "col", "col_rev"]
    for mean, a, b in zip(both, *single, strict=True):
        np.testing.assert_allclose(np.exp(mean.log_decay), (np.exp(a.log_decay) + np.exp(b.log_decay)) / 2, rtol=1e-12)


def test_towards_the_last_token_of_each_route():
    maps = decay_maps(small_network(**SS2D), [photograph()], 0, 0, None)
    last = {each.route: np.argwhere(each.log_decay == 0).tolist() for each in maps}
    assert last == {"row": [[15, 15]], "col": [[15, 15]], "row_rev": [[0, 0]], "col_rev": [[0, 0]]}
    assert all(np.isfinite(each.log_decay).all() for each in maps)
    assert maps[0].mean == pytest.approx(np.exp(maps[0].log_decay).mean())


def test_axes_join_a_route_and_its_reverse():
    decays = {
        "row": [[0.2, 0.4], [1.0, 0.0]],
        "row_rev": [[0.0, 0.0], [1.0, 0.5]],
        "col": [[0.01, 0.0], [1.0, 0.0]],
        "col_rev": [[0.0, 0.03], [1.0, 0.0]],
    }
    with np.errstate(divide="ignore"):
        maps = [RouteDecay(route, "full resolution", np.log(values)) for route, values in decays.items()]
    axes = join_axes(maps)
    np.testing.assert_allclose(np.exp(axes.log_horizontal), [[0.2, 0.4], [1.0, 0.5]])
    np.testing.assert_allclose(np.exp(axes.log_vertical), [[0.01, 0.03], [1.0, 0.0]])
    # No vertical route leads from the last token: it has no ratio, and is not in the share.
    np.testing.assert_allclose(np.exp(axes.log_ratio), [[20, 0.4 / 0.03], [1, np.nan]])
    assert axes.share == pytest.approx(2 / 3)
    rows = join_axes(maps[:1])
    assert math.isnan(rows.share)
    assert np.isneginf(rows.log_vertical).all()


def test_bad_input():
    network = small_network()
    with pytest.raises(ValueError, match="there is no photograph to compute the decay of; give one at least"):
        decay_maps(network, [], 0, 0, None)
    with pytest.raises(ValueError, match=r"noise has \(32, 64\) pixels \(H, W\), and the first photograph \(64, 64\)"):
        decay_maps(network, [photograph(), photograph(height=32)], 0, 0, None)
    with pytest.raises(ValueError, match="small has no stage 2: it has 2, so give 0 to 1, or -1 for the last"):
        decay_maps(network, [photograph()], 2, 0, None)
    with pytest.raises(ValueError, match="stage 1 of small has no block 1: it has 1, so give 0 to 0, or -1 for the"):
        decay_maps(network, [photograph()], -1, 1, None)


def test_figures_show_all_networks():
    network = small_network()
    maps = decay_maps(network, [photograph()], 0, 0, (32, 32))
    empty = AxisDecay(*(np.full((4, 4), -INF) for _ in range(2)))
    drawn = figures.draw_axes({"one": join_axes(maps), "other": empty}, (0.5, 0.5), "noise")
    assert [part.get_suptitle() for part in drawn.subfigs] == ["one", "other"]
    panels = [axes.images[0].get_array() for axes in drawn.subfigs[0].axes if axes.images]
    joined = join_axes(maps)
    for panel, expected in zip(panels, (joined.log_horizontal, joined.log_vertical), strict=False):
        reached = np.isfinite(expected)
        assert (np.ma.getmaskarray(panel) == ~reached).all()
        np.testing.assert_allclose(panel[reached], np.exp(expected[reached]))
    drawn = figures.draw_routes({"one": maps}, "noise")
    titles = [axes.get_title() for axes in drawn.subfigs[0].axes]
    assert [title.partition("\n")[0] for title in titles if title] == [f"{m.route}, {m.resolution}" for m in maps]
    assert figures.route_arrays(maps)["log_decay"].shape == (4, 16, 16)
    # The marks are on the last tokens: of row, and at half the resolution of row_rev, col and col_rev.
    last = figures.draw_routes({"one": decay_maps(network, [photograph()], 0, 0, None)}, "noise")
    marks = [axes.lines[0].get_xydata()[0].tolist() for axes in last.axes if axes.images]
    assert marks == [[15, 15], [0.5, 0.5], [14.5, 14.5], [0.5, 0.5]]


def test_walks_lay_values_out_by_route():
    walk = Walk(sequence(2, 2, ("row", "row_rev")), (0, 1), 1)
    assert walk.tokens.tolist() == [0, 1, 2, 3, 3, 2, 1]
    assert walk.lay_out(torch.arange(7), -1).tolist() == [[[0, 1], [2, 3]], [[-1, 6], [5, 4]]]


def test_titles_of_axes_without_ratios_and_with_huge_ones():
    """Of routes that are all horizontal no token has a ratio; warnings are errors here."""
    one = np.full((2, 2), -1.0)
    figure = figures.draw_axes({"a$b_1$": AxisDecay(one, np.full((2, 2), -INF))}, (0.5, 0.5), "noise")
    assert [axes.get_title() for axes in figure.axes if axes.images][3] == "ratio above 10: no token has both decays"
    assert not figure.subfigs[0]._suptitle.get_parse_math()  # a name is no formula
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.draw_axes({"huge": AxisDecay(one, one - 2000)}, (0.5, 0.5), "noise")
    ratio = [axes for axes in figure.axes if axes.images][2].images[0]
    assert ratio.norm.vmax == pytest.approx(1e3)
    assert ratio.get_array().max() <= ratio.norm.vmax * (1 + 1e-9)


def test_the_tool_saves_both_maps_and_what_they_are_of(tmp_path):
    """The axes lead to the query pixel, and the routes to their last tokens."""
    picture = photograph(height=32, width=32)
    Image.fromarray(picture.pixels).save(tmp_path / "noise.png")
    args = Namespace(
        model=["nano"], checkpoint=None, photographs=tmp_path, size=32, query=[9, 20], out=tmp_path / "out"
    )
    args.stage, args.block = 2, 1
    axes, routes = load_tool("decay_map").make(args)
    network = load_network("nano")
    expected = join_axes(decay_maps(network, [picture], 2, 1, (20, 9)))
    with np.load(axes.with_suffix(".npz")) as content:
        assert np.array_equal(content["0_log_vertical"], expected.log_vertical)
        assert np.array_equal(content["0_log_horizontal"], expected.log_horizontal)
        assert [content[name].tolist() for name in ("stage", "block", "size", "query")] == [2, 1, 32, [20, 9]]
        assert content["networks"].tolist() == ["MSVMamba nano, random weights"]
    with np.load(routes.with_suffix(".npz")) as content:
        assert np.isfinite(content["0_log_decay"]).all()  # all tokens come before the last one
    assert sorted(path.name for path in args.out.iterdir()) == [
        f"decay_{what}.{suffix}" for what in ("axes", "routes") for suffix in ("npz", "png", "svg")
    ]


def test_the_tool_takes_a_query_in_photographs_of_one_size(tmp_path):
    for name, width in (("a", 64), ("b", 96)):
        Image.fromarray(photograph(width=width).pixels).save(tmp_path / f"{name}.png")
    args = Namespace(model=["nano"], checkpoint=None, photographs=tmp_path, size=32, query=[40, 20], out=tmp_path)
    with pytest.raises(ValueError, match="--query is another pixel in each photograph, since their sizes differ"):
        load_tool("decay_map").make(args)
