"""The kernel of a whole block gives what its steps give, keeps nothing, and leaves alone what it does not take.

``MMMSV_FUZZ_EXAMPLES`` sets how many random blocks are drawn; they are the same in each run.
"""

import contextlib
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmsv.kernels.backends.cpu import block as cpu_block
from mmmsv.kernels.backends.cpu import library, memory
from mmmsv.kernels.backends.cpu.library import loaded_library

from .block_inputs import (
    BlockCase,
    by_steps,
    computed,
    draw_case,
    mapped,
    on_any_processor,
    weights_of,
    with_one_changed,
)
from .fused_inputs import needs_library, spread
from .scan_inputs import assert_near

# Relative to the largest number. Sums of some tens of numbers, norms and exponentials follow one another; of thousands
# of random blocks none is off by more than 11 units, and half of them are by 1.
TOLERANCE = 32 * torch.finfo(torch.float32).eps
EPS_BFLOAT16 = torch.finfo(torch.bfloat16).eps
EXAMPLES = int(os.environ.get("MMMSV_FUZZ_EXAMPLES", "150"))
ALL_ROUTES = ("row", "col", "row_rev", "col_rev")
SS2D = BlockCase(full_routes=ALL_ROUTES, half_routes=(), squeezed=None)
NORM_LAST = BlockCase(norm_first=False, gated=False, ffn="conv", hidden=64, post_norm=True)
CASES = [
    BlockCase(),
    BlockCase(biases=False),
    replace(SS2D, states=16, ffn="none"),
    replace(SS2D, gated=False, ffn="gelu", hidden=64),
    NORM_LAST,
    replace(NORM_LAST, gated=True, batch=3),
    BlockCase(size=(1, 1), batch=1),
    BlockCase(size=(1, 1), batch=5, stride=4),
    BlockCase(size=(1, 9), stride=3, norm_first=False),
    BlockCase(size=(7, 8), kernel=3),
    BlockCase(channels=1, inner=1, hidden=1, squeezed=1),
    BlockCase(channels=17, inner=33, hidden=50, squeezed=5, batch=3),
    BlockCase(channels=96, inner=192, hidden=200, rank=6, size=(7, 7), batch=1),
    BlockCase(channels=30, inner=600, size=(4, 4), ffn="none"),  # more channels than a scan takes at once
    BlockCase(size=(28, 29), batch=5),  # some images at once, and then the rest
    BlockCase(size=(57, 59), batch=2, channels=8, inner=8, hidden=8),  # one at a time
    BlockCase(size=(4, 5), batch=40),  # images whose rows share a block
    BlockCase(size=(16, 17), batch=6, channels=96, inner=24, hidden=24),  # the last of three images has few rows
    replace(NORM_LAST, size=(23, 25), batch=1),
    replace(SS2D, size=(19, 17), channels=17, inner=33, hidden=50, batch=1, ffn="gelu", biases=False),
]

pytestmark = needs_library


@pytest.fixture(autouse=True, scope="module")
def take_blocks(guarded_scratch):
    with on_any_processor():
        yield


def check(case):
    block, x = case.block(), case.x()
    assert_near(computed(x, block), by_steps(x.double(), block), TOLERANCE, str(case))


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_is_the_steps(set_threads, threads, case):
    set_threads(threads)
    check(case)


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(st.randoms(use_true_random=False), st.integers(1, 3))
def test_random_blocks_are_the_steps(draw, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(draw_case(draw))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
def test_the_bits_depend_on_an_image_alone(set_threads, case):
    """Neither on the threads, nor on the run, nor on the other images."""
    block, x = case.block(), case.x()
    results = []
    for threads in (1, 2, 3, 3):
        set_threads(threads)
        results += [computed(x, block), torch.cat([computed(image[None], block) for image in x])]
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("case", [BlockCase(batch=3), replace(SS2D, batch=3), replace(NORM_LAST, batch=5)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("image", [0, 2])
def test_what_is_not_finite_stays_in_its_image(set_threads, case, value, image):
    block, x = case.block(), case.x()
    set_threads(2)
    y = computed(x, block)
    x[image, 2, 1, 3] = value
    spoiled = computed(x, block)
    assert torch.equal(spoiled[image].isfinite(), by_steps(x, block)[image].isfinite())
    assert not spoiled[image, 2, 1].isfinite().any()
    others = [other for other in range(case.batch) if other != image]
    assert torch.equal(spoiled[others], y[others])


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "batch", "last"), [(2, 6, 2), (1, 12, 1)])
def test_the_last_images_have_room(monkeypatch, set_threads, threads, batch, last):
    """Of some images at once the last group is smaller, and may need more: few rows are computed otherwise."""
    case, sizes = BlockCase(size=(16, 17), channels=96, inner=24, hidden=24), []

    @contextlib.contextmanager
    def lend(size):
        sizes.append(size)
        with memory.scratch.lend(size) as address:
            yield address

    monkeypatch.setattr(library, "scratch", SimpleNamespace(lend=lend))
    set_threads(threads)
    block, image = case.block(), case.x()[:1]
    for images in (batch, last):
        computed(image.expand(images, -1, -1, -1).contiguous(), block)
    assert sizes[0] >= sizes[1] > 0


@pytest.mark.parametrize(
    "change", [lambda w: w.mul_(-2), lambda w: w.data.copy_(w.flip(0) - 1), lambda w: w.numpy().fill(0.5)]
)
def test_nothing_is_kept_of_a_weight(change):
    """Whichever way and whichever one is changed, the next result is of the weights as they are now."""
    block, x = BlockCase(channels=8, inner=9, hidden=10).block(), BlockCase(channels=8).x()
    y = computed(x, block)
    for weight in weights_of(block):
        before = weight.clone()
        change(weight)
        changed = computed(x, block)
        assert not torch.equal(changed, y)
        assert_near(changed, by_steps(x.double(), block), TOLERANCE)
        weight.copy_(before)
    assert torch.equal(computed(x, block), y)


def test_x_stays_as_it_is():
    block, x = BlockCase().block(), BlockCase().x()
    before = x.clone()
    y = computed(x, block)
    assert torch.equal(x, before)
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    again = y.clone()
    computed(x + 1, block)
    assert torch.equal(y, again)


def test_weights_stay_as_they_are():
    block = BlockCase().block()
    before = [weight.clone() for weight in weights_of(block)]
    computed(BlockCase().x(), block)
    assert all(torch.equal(weight, kept) for weight, kept in zip(weights_of(block), before, strict=True))


@pytest.mark.parametrize("case", [BlockCase(), NORM_LAST, BlockCase(size=(28, 29), batch=5)], ids=str)
def test_blocks_follow_one_another(case, set_threads):
    """In one call as in several; x stays as it is."""
    first, second, third = (mapped(case.block(), lambda w, scale=scale: scale * w) for scale in (1, 0.9, 1.1))
    x = case.x()
    before = x.clone()
    for threads in (1, 2):
        set_threads(threads)
        y = computed(computed(computed(x, first), second), third)
        assert torch.equal(computed(x, first, second, third), y)
    assert torch.equal(x, before)


@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
@pytest.mark.parametrize("case", [case for case in CASES if max(case.size) < 20], ids=str)
def test_bfloat16(case, autocast):
    """Maps in bfloat16, with weights in it, or with those in float32 that autocast finds: to some of its roundings."""
    x, block = case.x().bfloat16(), case.block()
    if not autocast:
        block = mapped(block, torch.Tensor.bfloat16)
    exact = by_steps(x.double(), block)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = computed(x, block)
    assert y.dtype == torch.bfloat16
    error = (y - exact).abs()
    assert error.max() <= 16 * EPS_BFLOAT16 * exact.abs().max()
    assert error.mean() <= 2 * EPS_BFLOAT16 * exact.abs().mean()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("maps", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_that_are_taken(maps, weights, autocast):
    """Those that the layers would have: all in one, or bfloat16 beside float32 where autocast makes it."""
    x, block = BlockCase().x().to(maps), mapped(BlockCase().block(), lambda w: w.to(weights))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = computed(x, block)
    narrow = maps == torch.bfloat16 and weights != torch.float16
    assert (y is not None) == (narrow if autocast else maps == weights != torch.float16)


@pytest.mark.parametrize(
    "lay_out",
    [
        spread,
        lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.flip(0)[:1].expand(len(x), -1, -1, -1),
        lambda x: torch.complex(x, x).conj().imag,  # whose numbers are negated as they are read
    ],
)
def test_other_layouts_of_x(lay_out):
    block, x = BlockCase().block(), lay_out(BlockCase().x())
    y = computed(x, block)
    assert y.is_contiguous()
    assert torch.equal(y, computed(x.contiguous(), block))


# --- what is not taken ----------------------------------------------------------------------------------------------


class Subclass(torch.Tensor):
    pass


NOT_WEIGHTS = {
    "float64": lambda w: w.double(),
    "bfloat16": lambda w: w.bfloat16(),
    "spread": spread,
    "one more at the end": lambda w: torch.cat((w, w[..., :1]), -1),
    "one more at the beginning": lambda w: torch.cat((w, w[:1])),
    "an axis more": lambda w: w[None],
    "no axis": lambda w: torch.zeros(()),
    "no numbers": lambda w: w[:0],
    "on meta": lambda w: w.to("meta"),
    "sparse": lambda w: w.to_sparse(),
    "a subclass": lambda w: w.as_subclass(Subclass),
    "with a gradient": lambda w: w.clone().requires_grad_(),
}


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_weights_that_are_not_taken(kind):
    """Whichever of all weights is one of these. Where a size follows from one weight, others have the wrong one."""
    case = BlockCase(channels=8, inner=9, hidden=10)
    block, x = case.block(), case.x()
    for place in range(len(weights_of(block))):
        assert computed(x, with_one_changed(block, place, NOT_WEIGHTS[kind])) is None, place


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 3, 4, 16, dtype=torch.float64),
        torch.randn(2, 3, 4, 16, dtype=torch.bfloat16),
        torch.randn(2, 3, 4, 17),
        torch.randn(3, 4, 16),
        torch.randn(0, 3, 4, 16),
        torch.randn(2, 0, 4, 16),
        torch.randn(2, 3, 4, 16).as_subclass(Subclass),
        torch.randn(2, 3, 4, 16, requires_grad=True),
    ],
)
def test_maps_that_are_not_taken(x):
    assert computed(x, BlockCase().block()) is None


def test_a_block_in_float64_is_not_taken():
    block, x = mapped(BlockCase().block(), torch.Tensor.double), BlockCase().x()
    assert computed(x, block) is None
    assert computed(x.double(), block) is None


def conv_with(part, **changes):
    """Return a change of the convolution of one part of a block."""

    def change(block):
        if part == "ffn":
            return block._replace(ffn=block.ffn._replace(conv=block.ffn.conv._replace(**changes)))
        conv, scan = getattr(block, part)
        return block._replace(**{part: (conv._replace(**changes), scan)})

    return change


def with_routes(*routes):
    return lambda block: block._replace(half=(block.half[0], block.half[1]._replace(routes=routes)))


@pytest.mark.parametrize(
    "change",
    [
        *(conv_with("full", weight=torch.randn(32, 1, *size)) for size in ((5, 5), (1, 1), (3, 7), (9, 9))),
        *(conv_with(part, activation="relu") for part in ("full", "half", "ffn")),
        conv_with("full", stride=2),
        conv_with("ffn", stride=2),
        conv_with("half", residual=True),
        conv_with("half", stride=0),
        conv_with("half", stride=65),  # which depthwise_conv refuses
        with_routes(),
        with_routes("diagonal"),
    ],
)
def test_options_that_are_not_taken(change):
    assert computed(BlockCase().x(), change(BlockCase().block())) is None


@pytest.mark.parametrize("field", ["squeezed", "hidden", "rank", "states", "inner"])
def test_sizes_of_0_are_not_taken(field):
    """Null is what the library takes for a layer that is missing; with rank 0 it reads the step of each channel."""
    case = BlockCase(**{field: 0})
    assert computed(case.x(), case.block()) is None


def test_where_the_steps_are_faster(monkeypatch):
    library = loaded_library()._replace(blocks_are_faster=False)
    monkeypatch.setattr(cpu_block, "loaded_library", lambda: library)
    assert computed(BlockCase().x(), BlockCase().block()) is None
