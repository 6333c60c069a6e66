"""What blocks in one call do not take of weights, settings and backends, has the results and errors of their layers."""

import contextlib

import pytest
import torch
from torch import nn

from mmmsv.kernels import BACKENDS, use_backend
from mmmsv.kernels.dispatch import Backend, register
from mmmsv.models import layers

from ..test_kernels.fused_inputs import needs_library
from .one_call import assert_same_outcome, model_of, set_weight

pytestmark = needs_library

WRONG = {
    "a column more": lambda w: torch.cat((w, w[..., :1]), -1),
    "a row more": lambda w: torch.cat((w, w[:1])),
    "an axis more": lambda w: w[None],
    "one number": lambda w: w.new_ones(1),
    "no axis": lambda w: w.new_ones(()),
    "no rows": lambda w: w[:0],
    "float64": lambda w: w.double(),
    "missing": lambda w: None,
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", ["nano", "vmamba_v2"])
def test_wrong_weights(taken, name, kind):
    """Whichever weight is wrong, the error is that of its layer."""
    model, x = model_of(name), torch.randn(2, 3, 4, 16)
    stage = model.stages[0]
    for path, weight in [*stage.blocks.named_parameters()]:
        set_weight(stage.blocks, path, WRONG[kind](weight.detach()))
        with torch.no_grad():
            assert_same_outcome(stage, x)
        set_weight(stage.blocks, path, weight.detach())


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("norm1", "eps", 0.5),
        ("norm1", "eps", "small"),
        ("scan.half_conv", "stride", (3, 3)),
        ("scan.half_conv", "stride", (0, 0)),
        ("scan.half_conv", "stride", (65, 65)),
        ("scan.half_conv", "stride", (2.0, 2.0)),
        ("scan.full_conv", "stride", (2, 2)),
        ("scan.full_conv", "activation", "gelu"),
        ("scan.full_conv", "activation", "relu"),
        ("ffn.dwconv", "residual", False),
        ("ffn.dwconv", "residual", 1),
        ("scan.full_scan", "routes", ("col",)),
        ("scan.full_scan", "routes", ["col"]),
        ("scan.full_scan", "routes", ("row", "col")),
        ("scan.full_scan", "routes", ("diagonal",)),
        ("scan.full_scan", "routes", (["row"],)),
        ("scan.full_scan", "carry", True),
        ("scan.full_scan", "carry", 1),
        ("scan.half_scan", "routes", ()),
        ("scan.half_scan", "routes", "row"),
        ("scan.half_scan", "carry", False),
        ("scan", "gated", False),
        ("scan", "merge_half", True),
        ("scan", "se", None),
        ("ffn", "drop", None),
        ("drop_path", "p", 0.5),
    ],
)
def test_changed_settings(taken, path, name, value):
    """They hold at once, or the error is that of the layer."""
    model, x = model_of("nano"), torch.randn(2, 9, 8, 16)
    setattr(model.stages[0].blocks[0].get_submodule(path), name, value)
    with torch.no_grad():
        assert_same_outcome(model.stages[0], x)


def test_a_stage_without_blocks(taken):
    model = model_of("nano")
    model.stages[0].blocks = nn.ModuleList()
    with torch.no_grad():
        assert_same_outcome(model, torch.randn(1, 3, 32, 40))


@pytest.fixture
def linear_backend():
    """A backend that has linear layers alone, and their calls."""
    before, calls = dict(BACKENDS), []

    def linear(x, weight, bias):
        calls.append(1)
        return nn.functional.linear(x, weight, bias)

    def add(**options):
        register(Backend("linear_alone", lambda device: None, linear=linear, **options))
        return calls

    yield add
    BACKENDS.clear()
    BACKENDS.update(before)


@pytest.mark.parametrize("automatic", [False, True])
def test_a_backend_of_some_ops(taken, linear_backend, automatic):
    """It computes them, whether it is asked for or comes first by itself."""
    calls = linear_backend(automatic_for=("cpu",), priority=100) if automatic else linear_backend()
    model = model_of("nano")
    with torch.no_grad(), contextlib.nullcontext() if automatic else use_backend("linear_alone"):
        assert_same_outcome(model, torch.randn(1, 3, 32, 40))
    assert not taken
    products = {layers.Linear: 1, layers.HalvedLinear: 2}
    assert len(calls) == 2 * sum(products.get(type(module), 0) for module in model.modules())
