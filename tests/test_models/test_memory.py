"""What a block keeps for its backward pass, and what it computes again."""

import itertools

import pytest
import torch
from torch import nn

from mmmsv.analysis.speed.memory import kept_for_backward
from mmmsv.models import MSVMamba
from mmmsv.models.recompute import _RECOMPUTED

DIM = 32
# By what is computed again and by arch: how many maps as large as the block's input. Four are so: the input, the sum
# behind the scan, and what comes out of both norms. Those within the scan (x, its convolution, what each resolution's
# scan gave) are twice as wide in tiny; what goes into the FFN's convolution is twice as wide there, and four times in
# v3; the rest is a map of half the size, and small. By default what goes into fc2 is kept, too, and z of a gate.
KEPT = {None: {"tiny": 18.5, "v3_tiny": 16, "v3_base": 17}, True: {"tiny": 14.5, "v3_tiny": 12, "v3_base": 12}}
# The same under autocast of a float32 map, as a block gets it on GPUs: the sums are float32, too, the rest takes half.
KEPT_IN_BFLOAT16 = {
    None: {"tiny": 10.5, "v3_tiny": 8.7, "v3_base": 9.2},
    True: {"tiny": 8.5, "v3_tiny": 7, "v3_base": 7},
}
ARCHS = [*KEPT[True]]
RECOMPUTING = [{"recompute": True}, {"with_cp": True}]


def backbone(arch, depth, **options):
    settings = {"base": arch, "embed_dims": (DIM,), "depths": (depth,)}
    return MSVMamba(settings, drop_path_rate=0.0, **options)


@pytest.mark.parametrize("recompute", KEPT)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_block_keeps_few_maps(arch, recompute):
    image = torch.randn(2, 3, 224, 224)
    one, two = (kept_for_backward(backbone(arch, depth, recompute=recompute), image) for depth in (1, 2))
    assert (two - one) / (2 * 56 * 56 * DIM * 4) < KEPT[recompute][arch]


@pytest.mark.parametrize("recompute", KEPT)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_block_keeps_few_maps_under_autocast(arch, recompute):
    x = torch.randn(2, 56, 56, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        kept = kept_for_backward(backbone(arch, 1, recompute=recompute).stages[0].blocks[0], x)
    assert kept / (x.numel() * 4) < KEPT_IN_BFLOAT16[recompute][arch]


def test_with_cp_keeps_the_input_of_a_block_alone():
    image = torch.randn(2, 3, 224, 224)
    one, two = (kept_for_backward(backbone("tiny", depth, with_cp=True), image) for depth in (1, 2))
    assert (two - one) / (2 * 56 * 56 * DIM * 4) < 1.1


@pytest.mark.parametrize("options", [{}, *RECOMPUTING], ids=str)
def test_random_parts_are_drawn_once(options):
    """What is computed again draws what it drew before, as a dropout does that an adapter puts in front of fc2."""
    torch.manual_seed(0)
    model, image = backbone("tiny", 1, **options).double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    block = model.stages[0].blocks[0]
    block.ffn.fc2 = nn.Sequential(nn.Dropout(0.5), block.ffn.fc2)
    gradients = []
    for plain in (False, True):
        torch.manual_seed(1)
        before = _RECOMPUTED.set(plain)  # as within another call: nothing is computed again
        y = model(image)[0]
        gradients.append(torch.autograd.grad(y.square().sum() + y.sum(), list(block.parameters())))
        _RECOMPUTED.reset(before)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", [{}, *RECOMPUTING], ids=str)
def test_weights_that_are_lent(options):
    """What is computed again takes the weights of the forward pass, which the module has no more by then."""
    torch.manual_seed(0)
    model, lender = (backbone("tiny", 1, **options).double() for _ in range(2))
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    lent = dict(lender.named_parameters())
    ours, theirs = (
        torch.autograd.grad(maps[0].square().sum(), list(lent.values()))
        for maps in (torch.func.functional_call(model, lent, (image,)), lender(image))
    )
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        *(({}, name) for name in ("scan.in_proj.weight", "scan.out_norm.weight")),
        *itertools.product(RECOMPUTING, ("scan.in_proj.weight", "scan.out_norm.weight", "ffn.dwconv.weight")),
    ],
    ids=str,
)
def test_weights_that_are_changed_too_early(options, name):
    """As autograd does for what it keeps."""
    model = backbone("tiny", 1, **options)
    y = model(torch.randn(1, 3, 32, 32))[0].sum()
    with torch.no_grad():
        model.stages[0].blocks[0].get_parameter(name).mul_(2)
    with pytest.raises(
        RuntimeError, match=r"its .* was changed in place between the forward pass and the backward pass"
    ):
        y.backward()


@pytest.mark.parametrize("options", RECOMPUTING, ids=str)
def test_each_part_runs_twice_at_most(options):
    model = backbone("tiny", 1, **options)
    calls = []
    model.stages[0].blocks[0].ffn.dwconv.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(1, 3, 32, 32))[0].sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("recompute", "convolved", "normed"), [(None, 1, 2), (True, 2, 2), (False, 1, 1)])
def test_what_runs_twice(arch, recompute, convolved, normed):
    """By default the norm after the scans, and what follows; the FFN's convolution if asked for."""
    block, calls = backbone(arch, 1, recompute=recompute).stages[0].blocks[0], []
    for layer, name in (block.ffn.dwconv, "convolved"), (block.scan.out_norm, "normed"):
        # No hook, with which nothing is computed again by default.
        layer.forward = lambda *x, forward=layer.forward, name=name: (calls.append(name), forward(*x))[1]
    block(torch.randn(1, 8, 8, DIM)).sum().backward()
    assert (calls.count("convolved"), calls.count("normed")) == (convolved, normed)


@pytest.mark.parametrize("arch", ARCHS)
def test_without_recomputation(arch):
    """A block keeps more, and the gradients are the same."""
    x = torch.randn(2, 56, 56, DIM)
    gradients, kept = [], []
    for recompute in (True, None, False):
        torch.manual_seed(0)
        block = backbone(arch, 1, recompute=recompute).stages[0].blocks[0]
        kept.append(kept_for_backward(block, x))
        gradients.append(torch.autograd.grad(block(x).square().sum(), list(block.parameters())))
    assert kept[0] < kept[1] < kept[2]
    assert kept[2] > 1.3 * kept[0]
    for some in gradients[:2]:
        for ours, theirs in zip(some, gradients[2], strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_traces(train, grad):
    model, image = backbone("tiny", 1).train(train), torch.randn(1, 3, 32, 40)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, image)
        torch.testing.assert_close(traced(image)[0], model(image)[0], rtol=1e-4, atol=1e-4)
