"""The weights of a scan written as attention give what the op gives, and the maps are made of them as documented."""

import itertools
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmmsv.analysis import scans
from mmmsv.analysis.attention import RouteAttention, attention_map, attention_maps, attention_weights, sum_routes
from mmmsv.analysis.figures import attention_map as figures
from mmmsv.analysis.scans import Sequence, Walk, record_sequences
from tools import attention_map as tool

from .small import HALF_SS2D, SS2D, photograph, sequence, small_network

CARRIED = ("row_rev", "col", "col_rev")
FUSIONS = {"norm_first": {}, "norm_last": {"fusion": "norm_last"}}
SCANS = {"SS2D": SS2D, "HalfSS2D": HALF_SS2D, **{f"MS2D {name}": fusion for name, fusion in FUSIONS.items()}}


def test_two_tokens_by_hand():
    x, step = torch.tensor([[[3.0], [5.0]]]), torch.tensor([[[0.5], [0.25]]])
    B, C = torch.tensor([[[2.0], [7.0]]]), torch.tensor([[[11.0], [-4.0]]])
    tokens = Sequence(("row",), (1, 2), 1, x, step, B, C, torch.tensor([[-2.0]]), torch.tensor([0.125]))
    first = -4.0 * np.exp(-2.0 * 0.25) * 0.5 * 2.0
    second = -4.0 * 0.25 * 7.0
    weights = attention_weights(tokens, (0, 1), 0)
    np.testing.assert_allclose(weights.flatten(), [first, second + 0.125])
    np.testing.assert_allclose(attention_map(tokens, (0, 1), 0).flatten(), [-first, -second])


@pytest.mark.parametrize("states", [1, 16])
@pytest.mark.parametrize("arch", SCANS.values(), ids=SCANS)
def test_weights_times_inputs_are_the_output_of_the_op(arch, states):
    network = small_network(**arch, state_size=states)
    network.model.double()
    scan, got = network.scan(1, 0), {}
    layers = [layer for name in ("full_scan", "half_scan") if (layer := getattr(scan, name, None)) is not None]
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, args: got.__setitem__(layer, args[0]))
    image = network.prepare([photograph(height=64, width=96)]).double()
    sequences = record_sequences(network, image, 1, 0)
    with torch.no_grad():
        expected = [layer(got[layer], merge=False)[0] for layer in layers]  # (routes, H, W, D)
    # Each route of each layer, whether it has a sequence of its own or shares one.
    found = [(one, k) for one in sequences for k in range(len(one.routes))]
    for (one, k), output in zip(found, itertools.chain(*expected), strict=True):
        rows, columns = one.size
        for token in [(0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)]:
            y = (attention_weights(one, token, k) * one.x).sum((0, 1, 2))
            torch.testing.assert_close(y, output[token], rtol=1e-10, atol=1e-12)


def test_in_float32_the_output_is_met_too():
    network = small_network(state_size=16)
    scan, outputs = network.scan(0, 0), []
    scan.half_scan.register_forward_hook(lambda layer, args, y: outputs.append((args[0], y)))
    half = record_sequences(network, network.prepare([photograph()]), 0, 0)[1]
    x, y = outputs[0]
    assert half.routes == CARRIED
    assert x.dtype == y.dtype == torch.float32
    for route in range(3):
        product = (attention_weights(half, (4, 4), route) * half.x).sum((0, 1, 2))
        torch.testing.assert_close(product, y[0, route, 4, 4].double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_a_time", [1, 40, 1 << 23])
@pytest.mark.parametrize("states", [1, 16])
def test_maps_are_means_over_channels_and_sums_over_visits(states, at_a_time, monkeypatch):
    tokens = sequence(3, 4, CARRIED, channels=5, states=states)
    # Some channels are inverted, so that weights are of both signs, and would cancel.
    tokens = replace(tokens, step=tokens.step * torch.tensor([1, -1, 1, 1, -1]))
    whole = [attention_weights(tokens, (1, 2), route) for route in range(3)]
    monkeypatch.setattr(scans, "_AT_A_TIME", at_a_time)  # one channel at a time, a few, or all
    for route, weights in enumerate(whole):
        torch.testing.assert_close(attention_weights(tokens, (1, 2), route), weights, rtol=1e-13, atol=0)
        weights[-1, 1, 2] -= tokens.skip
        expected = weights.abs().mean(-1).sum(0)
        torch.testing.assert_close(attention_map(tokens, (1, 2), route), expected, rtol=1e-12, atol=1e-15)


def test_working_memory_is_bounded_whatever_the_length(monkeypatch):
    monkeypatch.setattr(scans, "_AT_A_TIME", 2000)
    length, channels, states = 16 * 16, 6, 3
    walk = Walk(sequence(16, 16, ("row",), channels, states), (15, 15), 0)
    parts = [(part, sums.shape) for part, sums in walk.steps_after()]
    assert all(tokens == length and tokens * chosen * states <= 2000 for _, (tokens, chosen) in parts)
    assert [c for part, _ in parts for c in range(channels)[part]] == list(range(channels))


@pytest.mark.parametrize("backbone", [{}, SS2D], ids=["MS2D", "SS2D"])
def test_maps_of_a_block(backbone):
    network, seen = small_network(**backbone), photograph(height=64, width=96)
    maps = attention_maps(network, seen, 0, -1, (40, 8))
    assert all(each.weights.shape == (16, 24) and each.weights.dtype == np.float64 for each in maps)
    # The token is in row 10, column 2: what a route has not come to has no weight.
    full = {each.route: each.weights for each in maps if each.resolution == "full resolution"}
    assert np.argwhere(full["row"]).max(0)[0] == 10
    assert not full["row"][10, 3:].any()
    assert full["row"][10, :3].all()
    one = record_sequences(network, network.prepare([seen]), 0, 0)[-1]
    last, k = maps[-1], len(one.routes) - 1
    expected = attention_map(one, (10 // one.stride, 2 // one.stride), k)
    np.testing.assert_allclose(last.weights[:: one.stride, :: one.stride], expected, rtol=1e-6)


def test_a_stage_that_the_task_does_not_use():
    network = small_network()
    network.backbone.out_indices = (0,)
    assert len(attention_maps(network, photograph(), 1, 0, (32, 32))) == 4


def test_weights_that_are_not_finite():
    network = small_network()
    torch.nn.init.constant_(network.backbone.stages[0].blocks[0].scan.out_proj.weight, torch.nan)
    with pytest.raises(ValueError, match="stage 0 of small, random weights computes infinite numbers or NaN; give oth"):
        attention_maps(network, photograph(), 1, 0, (32, 32))


def maps_of(*values: float) -> list[RouteAttention]:
    return [RouteAttention("row", "full resolution", np.full((2, 3), value, np.float64)) for value in values]


def test_routes_are_summed():
    np.testing.assert_allclose(sum_routes(maps_of(1, 0.25)), np.full((2, 3), 1.25))


def test_networks_share_the_scale_and_what_is_not_reached_has_no_colour():
    many, few = maps_of(1, 0.25, 0), maps_of(1e-9)
    drawn = figures.draw({"many": many, "few": few}, photograph(height=64, width=96), (0, 0))
    assert [part.get_suptitle() for part in drawn.subfigs] == ["many", "few"]
    images = [axes.images[-1] for part in drawn.subfigs for axes in part.axes if len(axes.images) == 2]
    assert {image.get_clim() for image in images} == {(1.25e-4, 1.25)}
    shown = [image.get_array() for image in images]
    assert [bool(np.ma.getmaskarray(each).all()) for each in shown] == [False, False, True, False, False, False]
    np.testing.assert_allclose(shown[-1], 1.25e-4)  # as the least of the scale
    assert figures.arrays(many)["weights"].shape == (3, 2, 3)


def test_the_marks_are_on_the_token_of_the_query():
    """The pixel in row 20 and column 72 of 64 x 96, on a map of 2 x 3 tokens."""
    drawn = figures.draw({"one": maps_of(1)}, photograph(height=64, width=96), (20, 72))
    photo, *maps = (axes.lines[0].get_xydata()[0].tolist() for axes in drawn.subfigs[0].axes if axes.lines)
    assert photo == [72, 20]
    assert maps == [[pytest.approx(72.5 / 32 - 0.5), pytest.approx(20.5 / 32 - 0.5)]] * 2


def test_the_tool_makes_a_figure_for_each_photograph(monkeypatch):
    network, saved = small_network(), {}

    def save(figure, arrays, folder, name):
        saved[name] = arrays
        return folder / name

    monkeypatch.setattr(tool, "load_networks", lambda args: [network])
    monkeypatch.setattr(tool, "read_photographs", lambda *args: [photograph("a"), photograph("b")])
    monkeypatch.setattr(tool, "save", save)
    args = Namespace(photographs="folder", size=64, query=None, stage=-1, block=-1, out=Path("out"))
    assert tool.make(args) == [Path("out/attention_map_a"), Path("out/attention_map_b")]
    arrays = saved["attention_map_b"]
    assert arrays["networks"] == ["small, random weights, stage 1, block 0"]
    assert arrays["query"] == (32, 32)
    expected = attention_maps(network, photograph("b"), 1, 0, (32, 32))
    np.testing.assert_array_equal(arrays["0_weights"], np.stack([each.weights for each in expected]))


def test_without_any_weight_nothing_is_laid_over_the_photograph():
    drawn = figures.draw({"none": maps_of(0)}, photograph(), (0, 0))
    images = [axes.images[-1].get_array() for axes in drawn.subfigs[0].axes[1:3]]
    assert all(np.ma.getmaskarray(each).all() for each in images)
