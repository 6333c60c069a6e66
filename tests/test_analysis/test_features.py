"""Principal components, norms and similarities are those of the maps that leave the stages."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmmsv.analysis.features import feature_maps, principal_components
from mmmsv.analysis.figures import feature_map as figures
from mmmsv.analysis.networks import Network
from tools import feature_map as tool

from .small import photograph, small_network


def leaving(network: Network, image: torch.Tensor) -> list[torch.Tensor]:
    """The tokens that leave each stage, as hooks see them in a whole run."""
    maps: list[torch.Tensor] = []
    hooks = [stage.register_forward_hook(lambda *args: maps.append(args[2][0])) for stage in network.backbone.stages]
    with torch.no_grad():
        network.backbone(image)
    for hook in hooks:
        hook.remove()
    return maps


def test_norm_and_similarity_are_of_the_maps_that_leave_the_stages():
    network, seen = small_network(), photograph(height=64, width=96)
    features = feature_maps(network, seen, (40, 8))
    maps = leaving(network, network.prepare([seen]))
    assert [(one.stage, one.channels, one.norm.shape) for one in features] == [(0, 8, (16, 24)), (1, 16, (8, 12))]
    for one, tokens, (row, column) in zip(features, maps, [(10, 2), (5, 1)], strict=True):
        np.testing.assert_allclose(one.norm, tokens.norm(dim=-1), rtol=1e-5)
        query = tokens[row, column]
        expected = tokens @ query / (tokens.norm(dim=-1) * query.norm())
        np.testing.assert_allclose(one.similarity, expected, atol=1e-6)
        assert one.similarity[row, column] == pytest.approx(1)
        assert one.components.shape == (*one.norm.shape, 3)
        assert {one.components.min(), one.components.max()} == {0, 1}


def test_all_stages_whichever_a_task_uses():
    network = small_network()
    expected = feature_maps(network, photograph(), (0, 0))
    network.backbone.out_indices = (0,)
    found = feature_maps(network, photograph(), (0, 0))
    assert len(found) == 2
    np.testing.assert_array_equal(found[1].norm, expected[1].norm)


def test_components_are_the_directions_of_most_variance_with_their_signs_fixed():
    generator = torch.Generator().manual_seed(0)
    amounts = torch.randn(30, 20, 4, generator=generator, dtype=torch.float64) * torch.tensor([9.0, 5.0, 2.0, 0.1])
    directions = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0][:4]
    tokens = amounts @ directions + 100
    components, explained = principal_components(tokens)
    _, values, right = torch.linalg.svd(tokens.flatten(0, 1) - tokens.mean((0, 1)), full_matrices=False)
    torch.testing.assert_close(explained, (values**2 / (values**2).sum())[:3])
    for k in range(3):
        vector = right[k] * right[k][right[k].abs().argmax()].sign()
        expected = (tokens - tokens.mean((0, 1))) @ vector
        low, high = expected.flatten().quantile(torch.tensor([0.01, 0.99], dtype=torch.float64))
        torch.testing.assert_close(components[..., k], ((expected - low) / (high - low)).clamp(0, 1))


@pytest.mark.parametrize(
    ("tokens", "varying"),
    [(torch.ones(2, 3, 5) * 0.1, 0), (torch.arange(6.0).view(2, 3, 1), 1), (torch.arange(24.0).view(2, 3, 4), 1)],
    ids=["all alike", "one channel", "one direction"],
)
def test_components_without_variance_are_in_the_middle(tokens, varying):
    components, explained = principal_components(tokens.double())
    assert (components[..., varying:] == 0.5).all()
    np.testing.assert_allclose(explained, [1.0] * varying + [0.0] * (3 - varying))
    assert varying == 0 or components[..., 0].max() == 1


def test_a_pixel_that_is_not_there():
    message = r"there is no pixel \(64, 0\) \(row, column\) in noise, which has 64 x 64: give a row in 0..63 and a col"
    with pytest.raises(ValueError, match=message):
        feature_maps(small_network(), photograph(), (64, 0))


def test_similarities_share_a_scale_and_norms_have_their_own():
    features = feature_maps(small_network(), photograph(), (32, 32))
    drawn = figures.draw(features, photograph(), (32, 32), "small")
    for part, stage in zip(drawn.subfigs, features, strict=True):
        assert part.get_suptitle().startswith(f"stage {stage.stage}: ")
        shown = [axes.images[0].get_array() for axes in part.axes[1:4]]
        for values, expected in zip(shown, (stage.components, stage.norm, stage.similarity), strict=True):
            np.testing.assert_array_equal(values, expected)
        norm, similarity = (axes.images[0].get_clim() for axes in part.axes[2:4])
        assert norm == (stage.norm.min(), stage.norm.max())
        assert similarity == (-1, 1)


def test_the_tool_makes_a_figure_for_each_photograph_and_model(monkeypatch):
    networks, saved = [small_network(), small_network(state_size=2)], {}

    def save(figure, arrays, folder, name):
        saved[name] = arrays
        return folder / name

    monkeypatch.setattr(tool, "load_networks", lambda args: networks)
    monkeypatch.setattr(tool, "read_photographs", lambda *args: [photograph("a")])
    monkeypatch.setattr(tool, "save", save)
    args = Namespace(photographs="folder", size=64, query=(1, 2), out=Path("out"))
    assert tool.make(args) == [Path("out/feature_map_0_a"), Path("out/feature_map_1_a")]
    arrays = saved["feature_map_1_a"]
    assert arrays["query"] == (2, 1)
    expected = feature_maps(networks[1], photograph("a"), (2, 1))[1]
    np.testing.assert_array_equal(arrays["stage1_similarity"], expected.similarity)
