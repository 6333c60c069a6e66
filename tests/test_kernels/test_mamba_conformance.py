"""This package's functions against those of mamba-ssm and causal-conv1d, where these are installed.

Their Python is enough: without the compiled scan it is stood in for, and what is compared is their reference, which
calls no kernel. Where the kernels are there and a GPU, so are they.
"""

import functools
import importlib
import importlib.util
import sys

import pytest
import torch

from mmmsv.kernels import mamba, stand_in
from mmmsv.kernels.stand_ins import finder

from . import mamba_oracle
from .scan_inputs import TOLERANCE, assert_near, loss

# That package's own tests allow its kernels 6e-4 of float32, since they take other roads to the same sum.
OF_KERNELS = {torch.float32: 6e-4, torch.bfloat16: 3e-2}


@pytest.fixture(scope="module")
def theirs():
    """Return the interface of the real mamba-ssm."""
    if importlib.util.find_spec("mamba_ssm") is None:
        pytest.skip("mamba-ssm is not installed")
    stand_in()
    try:
        yield importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except ImportError as error:
        pytest.skip(f"mamba-ssm is installed, and cannot be imported: {error}")
    finally:
        sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, finder.StandInFinder)]


def with_softplus(function):
    return functools.partial(function, delta_softplus=True)


def compare(mine, other, given, tolerance):
    copies = [{name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()} for _ in range(2)]
    results = [function(**of) for function, of in zip((mine, other), copies, strict=True)]
    gradients = [torch.autograd.grad(loss(y), list(of.values())) for y, of in zip(results, copies, strict=True)]
    assert results[0].dtype == results[1].dtype
    assert_near(*results, tolerance)
    for name, one, reference in zip(given, *gradients, strict=True):
        assert one.dtype == reference.dtype
        assert_near(one, reference, tolerance, name)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("leave", [(), ("z", "D", "delta_bias")], ids=["all", "few"])
def test_scan(theirs, dtype, groups, leave):
    given = mamba_oracle.inputs(dtype, length=70, state=3, groups=groups)
    given = {name: tensor.detach() for name, tensor in given.items() if name not in leave}

    tolerance = {**TOLERANCE, torch.bfloat16: 2e-2}[dtype]
    compare(with_softplus(mamba.selective_scan_fn), with_softplus(theirs.selective_scan_ref), given, tolerance)
    options = {**given, "delta_softplus": True, "return_last_state": True}
    (_, mine), (_, last) = mamba.selective_scan_fn(**options), theirs.selective_scan_ref(**options)
    assert mine.dtype == last.dtype
    assert_near(mine, last, 2e-5)
    if torch.cuda.is_available() and dtype in OF_KERNELS:
        on_gpu = {name: tensor.contiguous().cuda() for name, tensor in given.items()}
        compare(
            with_softplus(mamba.selective_scan_fn), with_softplus(theirs.selective_scan_fn), on_gpu, OF_KERNELS[dtype]
        )


def test_scan_of_mixed_dtypes(theirs):
    given = {name: tensor.detach() for name, tensor in mamba_oracle.inputs(torch.float32, length=20, state=3).items()}
    given = {**given, "u": given["u"].bfloat16(), "C": given["C"].half()}
    compare(with_softplus(mamba.selective_scan_fn), with_softplus(theirs.selective_scan_ref), given, 2e-2)


def test_scan_of_constant_projections(theirs):
    given = {name: tensor.detach() for name, tensor in mamba_oracle.inputs(torch.float32, length=20, state=3).items()}
    for name in "BC":
        given[name] = given["A"].roll(1, 0)
    compare(with_softplus(mamba.selective_scan_fn), with_softplus(theirs.selective_scan_ref), given, 2e-5)


@pytest.mark.parametrize("version", ["mamba_inner_ref", "mamba_inner_fn"])
def test_block(theirs, version):
    """Their reference, and their own forward and backward passes around the kernels, or what stands in for those."""
    if theirs.causal_conv1d_fn is None:
        pytest.skip("causal-conv1d is not installed")
    device = "cuda" if theirs.selective_scan_cuda.__file__.endswith(".so") else "cpu"
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "xz": (2, 12, 70),
        "conv1d_weight": (6, 1, 4),
        "conv1d_bias": (6,),
        "x_proj_weight": (2 + 3 + 3, 6),
        "delta_proj_weight": (6, 2),
        "out_proj_weight": (5, 6),
        "out_proj_bias": (5,),
        "A": (6, 3),
        "D": (6,),
        "delta_bias": (6,),
    }
    given = {name: torch.randn(shape, generator=generator).to(device) for name, shape in shapes.items()}
    given["A"] = -given["A"].exp()
    # Its backward pass gives the bias of the last layer a gradient of another shape.
    missing = {"out_proj_bias": None} if version == "mamba_inner_fn" else {}
    mine, other = (functools.partial(each, **missing) for each in (mamba.mamba_inner_fn, getattr(theirs, version)))
    given = {name: tensor for name, tensor in given.items() if name not in missing}
    compare(mine, other, given, OF_KERNELS[torch.float32] if device == "cuda" else 2e-5)


@pytest.mark.parametrize("heads", [(), (4,)], ids=["channels", "heads"])
def test_state_update(theirs, heads):
    step = pytest.importorskip("mamba_ssm.ops.triton.selective_state_update", exc_type=ImportError)
    if heads and importlib.import_module("mamba_ssm").__version__.startswith("1."):
        pytest.skip("mamba-ssm has heads from 2.0 on")
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    groups = (2,) if heads else ()
    tokens = [normal(2, *heads, 5) for _ in range(3)]
    B, C, A, D, bias = normal(2, *groups, 3), normal(2, *groups, 3), -normal(*heads, 5, 3).exp(), *normal(2, *heads, 5)
    first = normal(2, *heads, 5, 3)
    states = [first.clone(), first.clone()]
    for function, state in zip((mamba.selective_state_update, step.selective_state_update_ref), states, strict=True):
        tokens.append(function(state, tokens[0], tokens[1], A, B, C, D, tokens[2], bias, True))
    assert_near(*tokens[3:], 2e-6)
    assert_near(*states, 2e-6)
