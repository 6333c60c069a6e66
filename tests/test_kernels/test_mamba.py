"""The functions of mamba-ssm's and causal-conv1d's interfaces, against loops over tokens in float64."""

import pytest
import torch
from torch.nn import functional as F

from mmmsv.kernels import mamba
from mmmsv.kernels.causal_conv1d import causal_conv1d_fn, causal_conv1d_update

from . import mamba_oracle
from .scan_inputs import TOLERANCE, assert_near, loss

BATCH, CHANNELS, LENGTH, STATE, RANK, WIDTH, OUT = 2, 6, 11, 3, 2, 4, 5


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_gradients(ours, theirs, one, other, tolerance=1e-12):
    """Two results and their gradients with respect to tensors of the same names are near each other."""
    assert_near(ours, theirs, tolerance)
    gradients = [torch.autograd.grad(loss(y), list(of.values())) for y, of in ((ours, one), (theirs, other))]
    for name, mine, exact in zip(one, *gradients, strict=True):
        assert mine.dtype == one[name].dtype
        assert_near(mine, exact, tolerance, name)


def test_scan_of_one_dtype():
    given = mamba_oracle.inputs(length=LENGTH, state=STATE, groups=2)
    y, last = mamba.selective_scan_fn(**given, delta_softplus=True, return_last_state=True)
    exact = mamba_oracle.doubled(given)
    theirs, of_last = mamba_oracle.scan(**exact, delta_softplus=True)
    assert_near(last, of_last, 1e-12)
    assert_gradients(y, theirs, given, exact)
    assert mamba.selective_scan_ref is mamba.selective_scan_fn


@pytest.mark.parametrize("autocast", [False, True])
def test_scan_of_mixed_dtypes(autocast):
    """They are computed in the widest, as that package's reference does, and y has the dtype of u."""
    given = mamba_oracle.inputs(length=LENGTH, state=STATE)
    dtypes = {"u": torch.bfloat16, "delta": torch.float32, "B": torch.float16, "C": torch.bfloat16, "z": torch.float32}
    given = {n: t.detach().to(dtypes.get(n, torch.float32)).requires_grad_() for n, t in given.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, last = mamba.selective_scan_fn(**given, delta_softplus=True, return_last_state=True)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    exact = mamba_oracle.doubled(given)
    theirs, of_last = mamba_oracle.scan(**exact, delta_softplus=True)
    assert_near(last, of_last, TOLERANCE[torch.float32])
    assert_gradients(y, theirs, given, exact, TOLERANCE[torch.bfloat16])
    given["u"] = given["u"].detach().double()
    assert mamba.selective_scan_fn(**given, return_last_state=True)[1].dtype == torch.float64


def block_weights(given=(), biases=True, dtype=torch.float64):
    """Weights of a block by name; ``given`` are projections that are not those of each token."""
    rows = RANK + STATE * (2 - len(given))
    weights = {
        "conv1d_weight": normal(CHANNELS, 1, WIDTH, seed=1),
        "conv1d_bias": normal(CHANNELS, seed=2),
        "x_proj_weight": normal(rows, CHANNELS, seed=3) / 3,
        "delta_proj_weight": normal(CHANNELS, RANK, seed=4),
        "out_proj_weight": normal(OUT, CHANNELS, seed=5),
        "out_proj_bias": normal(OUT, seed=6),
        "A": -normal(CHANNELS, STATE, seed=7).exp(),
        "D": normal(CHANNELS, seed=8),
        "delta_bias": normal(CHANNELS, seed=9),
    }
    for name in given:
        weights[name] = normal(CHANNELS, STATE, seed=10) if name == "B" else normal(BATCH, STATE, LENGTH, seed=11)
    if biases:
        weights |= {f"{name}_proj_bias": normal(STATE, seed=12 + i) for i, name in enumerate("BC") if name not in given}
    return {name: weight.to(dtype).requires_grad_() for name, weight in weights.items()}


def projected(xz, weights, norms):
    """Return the arguments of the scan in a block, by the paper's equations."""
    x, z = xz.chunk(2, 1)
    u = F.silu(mamba_oracle.convolution(x, weights["conv1d_weight"][:, 0], weights["conv1d_bias"]))
    low, *rest = torch.einsum("rd,bdl->brl", weights["x_proj_weight"], u).split(
        [RANK, *(STATE for name in "BC" if name not in weights)], 1
    )
    scan = {"u": u, "delta": torch.einsum("dr,brl->bdl", weights["delta_proj_weight"], low), "z": z}
    for name in "BC":
        scan[name] = weights[name] if name in weights else rest.pop(0)
        if f"{name}_proj_bias" in weights:
            scan[name] = scan[name] + weights[f"{name}_proj_bias"][:, None]
    for name, weight in (("delta", "dt_rms_weight"), ("B", "b_rms_weight"), ("C", "c_rms_weight")):
        if weight in norms:
            mean = scan[name].pow(2).mean(1, keepdim=True)
            scan[name] = scan[name] / (mean + norms.get("b_c_dt_rms_eps", 1e-6)).sqrt() * norms[weight][:, None]
    return {**scan, **{name: weights[name] for name in ("A", "D", "delta_bias")}, "delta_softplus": True}


def norms_of_all():
    sizes = {"b_rms_weight": STATE, "c_rms_weight": STATE, "dt_rms_weight": CHANNELS}
    return {name: normal(size, seed=20).requires_grad_() for name, size in sizes.items()}


@pytest.mark.parametrize("given", [(), ("B",), ("C",), ("B", "C")], ids=str)
@pytest.mark.parametrize("normed", [False, True])
def test_block(given, normed):
    weights, xz = block_weights(given), normal(BATCH, 2 * CHANNELS, LENGTH).requires_grad_()
    norms = {n: w for n, w in norms_of_all().items() if normed and (n[0].upper() not in given or n[0] == "d")}
    options = {"b_c_dt_rms_eps": 0.1, "checkpoint_lvl": 0} if normed else {}
    y = mamba.mamba_inner_fn(xz, **weights, **norms, **options)
    scanned, _ = mamba_oracle.scan(**projected(xz, weights, {**norms, **options}))
    theirs = torch.einsum("ed,bdl->ble", weights["out_proj_weight"], scanned) + weights["out_proj_bias"]
    leaves = {"xz": xz, **weights, **norms}
    assert_gradients(y, theirs, leaves, leaves)


def test_blocks_of_vim():
    weights, xz = block_weights(), normal(BATCH, 2 * CHANNELS, LENGTH).requires_grad_()
    of_out = {name: weights.pop(name) for name in ("out_proj_weight", "out_proj_bias")}
    leaves = {"xz": xz, **weights}
    forth, _ = mamba_oracle.scan(**projected(xz, weights, {}))
    assert_gradients(mamba.mamba_inner_fn_no_out_proj(xz, **weights), forth, leaves, leaves)

    A_b = weights["A"].detach().flip(0).requires_grad_()
    scan = projected(xz, weights, {})
    turned = {name: scan[name].flip(-1) for name in ("u", "delta", "B", "C", "z")}
    (forth, _), (back, _) = mamba_oracle.scan(**scan), mamba_oracle.scan(**{**scan, **turned, "A": A_b})
    theirs = torch.einsum("ed,bdl->ble", of_out["out_proj_weight"], forth + back.flip(-1)) + of_out["out_proj_bias"]
    leaves |= {"A_b": A_b, **of_out}
    assert_gradients(mamba.bimamba_inner_fn(xz, **weights, A_b=A_b, **of_out), theirs, leaves, leaves)


def test_block_under_autocast():
    """Products in the dtype of autocast, from float32 weights; convolution and states in float32."""
    weights = {name: weight.detach() for name, weight in block_weights(dtype=torch.float32).items()}
    xz = normal(BATCH, 2 * CHANNELS, LENGTH, dtype=torch.float32)
    exact = mamba.mamba_inner_fn(xz, **weights)
    for given in (xz, xz.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            y = mamba.mamba_inner_fn(given, **weights)
        assert y.dtype == torch.bfloat16
        assert_near(y, exact, 3e-2)


def test_block_compiles():
    weights, xz = block_weights(), normal(BATCH, 2 * CHANNELS, LENGTH).requires_grad_()
    compiled = torch.compile(mamba.mamba_inner_fn, fullgraph=True, backend="aot_eager")
    leaves = {"xz": xz, **weights}
    assert_gradients(compiled(xz, **weights), mamba.mamba_inner_fn(xz, **weights), leaves, leaves)


@pytest.mark.parametrize("heads", [(), (4,)], ids=["channels", "heads"])
@pytest.mark.parametrize("indexed", [False, True])
def test_state_update(heads, indexed):
    """Steps one after the other are a scan; rows are found by their indices, and padding is left alone."""
    channels, steps = 3, 4
    of_tokens = lambda *shape, seed: normal(steps, BATCH, *shape, seed=seed)  # noqa: E731
    x, dt, z = (of_tokens(*heads, channels, seed=seed) for seed in (1, 2, 3))
    groups = (2,) if heads else ()
    B, C = (of_tokens(*groups, STATE, seed=seed) for seed in (4, 5))
    A, D, bias = -normal(*heads, channels, STATE, seed=6).exp(), normal(*heads, channels), normal(*heads, channels)
    rows = torch.tensor([3, -1]) if indexed else None
    state = torch.zeros(5 if indexed else BATCH, *heads, channels, STATE, dtype=torch.float64)
    given = [{"x": x[t], "dt": dt[t], "B": B[t], "C": C[t], "z": z[t]} for t in range(steps)]
    weights = {"A": A, "D": D, "dt_bias": bias, "dt_softplus": True, "state_batch_indices": rows}
    y = torch.stack([mamba.selective_state_update(state, **one, **weights) for one in given])

    flat = lambda of: of.flatten(2).permute(1, 2, 0) if of.dim() > 2 else of  # noqa: E731
    per_group = lambda of: (of if heads else of[:, :, None]).permute(1, 2, 3, 0)  # noqa: E731
    theirs, last = mamba_oracle.scan(
        *(flat(x), flat(dt), A.flatten(0, -2), per_group(B), per_group(C), D.flatten(), flat(z)),
        *(bias.flatten(), True),
    )
    mine, states = flat(y), state.flatten(1, -2)
    if indexed:
        assert not mine[1].any()
        assert [i for i, row in enumerate(state) if row.any()] == [3]
        mine, theirs, states, last = mine[:1], theirs[:1], states[3:4], last[:1]
    assert_near(mine, theirs, 1e-12)
    assert_near(states, last, 1e-12)


def test_state_update_keeps_the_dtypes():
    state = torch.zeros(BATCH, CHANNELS, STATE, dtype=torch.bfloat16)
    x, B = normal(BATCH, CHANNELS, dtype=torch.float16), normal(BATCH, STATE, dtype=torch.float32)
    y = mamba.selective_state_update(state, x, x.abs(), -torch.ones(CHANNELS, STATE), B, B)
    assert (y.dtype, state.dtype) == (torch.float16, torch.bfloat16)
    assert_near(state, (x.abs() * x)[:, :, None] * B[:, None], 5e-3)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("length", [1, 2, LENGTH])
def test_convolution(activation, length):
    """With the tokens before, and those for the next call; also where the sequence is shorter than they are."""
    leaves = {
        "x": normal(BATCH, CHANNELS, length),
        "weight": normal(CHANNELS, WIDTH, seed=1),
        "bias": normal(CHANNELS, seed=2),
        "initial_states": normal(BATCH, CHANNELS, WIDTH - 1, seed=3),
    }
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    y, last = causal_conv1d_fn(**leaves, return_final_states=True, activation=activation)
    theirs = mamba_oracle.convolution(leaves["x"], leaves["weight"], leaves["bias"], leaves["initial_states"])
    theirs = theirs * theirs.sigmoid() if activation else theirs
    assert_gradients(y, theirs, leaves, leaves)
    assert torch.equal(last, torch.cat((leaves["initial_states"], leaves["x"]), 2)[:, :, -(WIDTH - 1) :])
    out = torch.empty_like(last)
    plain = {name: leaf.detach() for name, leaf in leaves.items()}
    assert causal_conv1d_fn(**plain, return_final_states=True, final_states_out=out)[1] is out
    assert torch.equal(out, last)


def test_convolution_of_narrow_tensors():
    """Sums are in float32, under autocast as well; no token is no error."""
    x, weight = normal(BATCH, CHANNELS, LENGTH, dtype=torch.bfloat16), normal(CHANNELS, WIDTH, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = causal_conv1d_fn(x, weight)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, mamba_oracle.convolution(x.double(), weight.double()).bfloat16())
    assert causal_conv1d_fn(x[:, :, :0], weight).shape == (BATCH, CHANNELS, 0)


@pytest.mark.parametrize("size", [WIDTH - 1, WIDTH, 6])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("pieces", [(1,) * LENGTH, (3, 1, LENGTH - 4)], ids=["one by one", "pieces"])
def test_convolution_piece_by_piece(size, ring, pieces):
    x, weight, bias = normal(BATCH, CHANNELS, LENGTH), normal(CHANNELS, WIDTH, seed=1), normal(CHANNELS, seed=2)
    state, seen, y = torch.zeros(4, CHANNELS, size, dtype=torch.float64), 0, []
    rows = torch.tensor([2, 0])
    for piece in x.split(pieces, 2):
        options = {"cache_seqlens": torch.full((BATCH,), seen, dtype=torch.int32)} if ring else {}
        one = piece[:, :, 0] if piece.shape[2] == 1 else piece
        of_piece = causal_conv1d_update(one, state, weight, bias, "silu", conv_state_indices=rows, **options)
        assert of_piece.shape == one.shape
        y.append(of_piece.view_as(piece))
        seen += piece.shape[2]
    assert_near(torch.cat(y, 2), F.silu(mamba_oracle.convolution(x, weight, bias)), 1e-12)
    assert not state[[1, 3]].any()
    newest = x[:, :, -size:]
    kept = newest if not ring else newest.roll(LENGTH % size, 2)
    assert torch.equal(state[rows], kept)


def refused(function, error, message, **given):
    with pytest.raises(error, match=message):
        function(**given)


def test_complex_states_are_refused():
    complex_A = -torch.ones(CHANNELS, STATE, dtype=torch.complex64)
    message = "A is torch.complex64, and the states of this scan are real; take a model with a real A"
    given = {**mamba_oracle.inputs(length=LENGTH, state=STATE), "A": complex_A}
    refused(mamba.selective_scan_fn, TypeError, f"selective_scan_fn: {message}", **given)
    weights = {**block_weights(), "xz": normal(BATCH, 2 * CHANNELS, LENGTH), "A": complex_A}
    refused(mamba.mamba_inner_fn, TypeError, f"mamba_inner_fn: {message}", **weights)
    weights |= {"A": complex_A.real, "A_b": complex_A}
    refused(mamba.bimamba_inner_fn, TypeError, f"bimamba_inner_fn: {message}", **weights)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"xz": torch.ones(2, 11, 5)},
            ValueError,
            r"xz has shape \(2, 11, 5\) and A \(6, 3\), expected \(batch, 2 D, L\)",
        ),
        ({"conv1d_weight": torch.ones(6, 4)}, ValueError, r"conv1d_weight has shape \(6, 4\), expected \(D, 1, W\)"),
        (
            {"x_proj_weight": torch.ones(9, 6)},
            ValueError,
            r"x_proj_weight has shape \(9, 6\), expected \(8, 6\): R = 2 rows for the step, N = 3 for each of B and C",
        ),
        (
            {"b_rms_weight": torch.ones(4)},
            ValueError,
            r"b_rms_weight has shape \(4,\), and what it normalises \(2, 3, 11\)",
        ),
        ({"checkpoint_lvl": 2}, ValueError, "checkpoint_lvl is 2, expected 0 or 1"),
        ({"conv1d_weight": None}, TypeError, "conv1d_weight is a NoneType, expected a torch.Tensor"),
    ],
)
def test_bad_block(changed, error, message):
    given = {"xz": normal(BATCH, 2 * CHANNELS, LENGTH), **block_weights(), **changed}
    refused(mamba.mamba_inner_fn, error, f"^mamba_inner_fn: {message}", **given)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"seq_idx": torch.zeros(2, 5)}, NotImplementedError, "seq_idx is given, and sequences one behind the other"),
        ({"activation": "gelu"}, ValueError, "activation is 'gelu', expected 'silu', 'swish' or None"),
        ({"x": torch.ones(2, 6)}, ValueError, r"x has shape \(2, 6\), expected \(batch, D, L\)"),
        (
            {"weight": torch.ones(5, 4)},
            ValueError,
            r"weight has shape \(5, 4\), expected \(D, W\) = \(6, W >= 1\) for x",
        ),
        ({"bias": torch.ones(5)}, ValueError, r"bias has shape \(5,\), expected \(D,\) = \(6,\)"),
        (
            {"initial_states": torch.ones(2, 6, 4)},
            ValueError,
            r"initial_states has shape \(2, 6, 4\), expected \(2, 6, 3\) for x",
        ),
        ({"return_final_states": 1}, TypeError, "return_final_states is a int, expected True or False"),
    ],
)
def test_bad_convolution(changed, error, message):
    given = {"x": torch.ones(2, 6, 5), "weight": torch.ones(6, 4), **changed}
    refused(causal_conv1d_fn, error, f"^causal_conv1d_fn: {message}", **given)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"state": torch.ones(2, 6)},
            ValueError,
            r"state has shape \(2, 6\), expected \(batch, D, N\) or \(batch, H, D, N\)",
        ),
        ({"A": torch.ones(6, 4)}, ValueError, r"A has shape \(6, 4\), expected \(6, 3\) for state \(2, 6, 3\)"),
        ({"B": torch.ones(2, 3, 3)}, ValueError, r"C has shape \(2, 3\), expected \(2, 3, 3\)"),
        (
            {"state": torch.ones(3, 6, 3)},
            ValueError,
            "state has 3 rows and x 2; pass state_batch_indices, or one for each",
        ),
        (
            {"state_batch_indices": torch.tensor([0, 2])},
            ValueError,
            "state_batch_indices holds 2, and state has 2 rows",
        ),
        (
            {"state_batch_indices": torch.ones(2)},
            TypeError,
            "state_batch_indices is torch.float32, expected a tensor of int",
        ),
        (
            {"state_batch_indices": torch.tensor([0])},
            ValueError,
            r"state_batch_indices has shape \(1,\), expected \(batch,\)",
        ),
    ],
)
def test_bad_step(changed, error, message):
    """It says so before the state is changed."""
    tokens = {"x": torch.ones(2, 6), "dt": torch.ones(2, 6), "B": torch.ones(2, 3), "C": torch.ones(2, 3)}
    given = {"state": torch.ones(2, 6, 3), "A": -torch.ones(6, 3), **tokens, **changed}
    refused(mamba.selective_state_update, error, f"^selective_state_update: {message}", **given)
    assert (given["state"] == 1).all()
