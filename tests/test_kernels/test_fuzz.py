"""Random arguments of both ops: valid ones give what the oracle gives, spoiled ones an error that says what is wrong.

``MMMSV_FUZZ_EXAMPLES`` sets how many examples a test draws (some draw a quarter of it); they are the same in each run.
"""

import dataclasses
import os
import re

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmmsv.kernels import BACKENDS, ROUTES, scan2d, selective_scan, use_backend

from ..simulator import SIMULATED
from .scan_inputs import TOLERANCE, assert_near, run_map, run_with_last_state

# An interpreter would take too long.
BACKENDS_OF_CPUS = ("triton",) if SIMULATED else ("cpu", "torch")
OURS = [name for name in BACKENDS_OF_CPUS if BACKENDS[name].why_not(torch.device("cpu")) is None]
EXAMPLES = int(os.environ.get("MMMSV_FUZZ_EXAMPLES", "300"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
FEWER = settings(SETTINGS, max_examples=max(EXAMPLES // 4, 1))

pytestmark = pytest.mark.slow
OPS = {"selective_scan": selective_scan, "scan2d": scan2d}
PER_TOKEN = {"selective_scan": ("u", "delta", "B", "C", "z"), "scan2d": ("x", "dt", "B", "C")}
SWITCHES = {"selective_scan": ("delta_softplus", "return_last_state"), "scan2d": ("carry", "merge")}
OPTIONAL = ("D", "delta_bias", "z", "h0")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory."""

    order: tuple[int, ...]  # its axes, from the outermost to the innermost
    steps: tuple[int, ...]  # of each axis, every so manieth element
    expanded: tuple[bool, ...]  # the axes along which there is one element, seen again and again

    def lay_out(self, values: Tensor) -> Tensor:
        """Return ``values`` so laid out, those of an expanded axis replaced by its first; NaN fills the gaps."""
        first = tuple(slice(0, 1 if expanded else None) for expanded in self.expanded)
        few = values[first]
        room = values.new_full([few.shape[axis] * self.steps[axis] for axis in self.order], float("nan"))
        room = room.permute([self.order.index(axis) for axis in range(values.dim())])
        # The last element of each step, so that the data do not begin where the memory does.
        view = room[tuple(slice(step - 1, None, step) for step in self.steps)]
        return view.copy_(few).expand_as(values)


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of an op, from which the same tensors can be made again and again."""

    op: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    layouts: dict[str, Layout]  # of the tensors that are not contiguous
    options: dict
    seed: int

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.dtypes.values()))

    def tensors(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        tensors = {}
        for name, shape in self.shapes.items():
            values = self._tame(name, torch.randn(shape, generator=generator, dtype=torch.float64))
            tensors[name] = values.to(self.dtypes[name])
            if name in self.layouts:
                tensors[name] = self.layouts[name].lay_out(tensors[name])
        return tensors

    def _tame(self, name: str, normal: Tensor) -> Tensor:
        """Make values of which no state grows: decays below 1, steps above 0 but seldom above 2."""
        if name == "A":
            return -normal.exp()
        if name == "W_dt":
            return normal / normal.shape[-1] ** 0.5
        if name in ("delta", "delta_bias") and not self.options["delta_softplus"]:
            return normal.abs() / 2
        return normal - 1 if name in ("delta_bias", "b_dt") else normal

    def spoil_shape(self, name: str, shape: tuple[int, ...]) -> "Call":
        layouts = {other: layout for other, layout in self.layouts.items() if other != name}
        return dataclasses.replace(self, shapes={**self.shapes, name: shape}, layouts=layouts)

    def outcome(self, backend: str, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return y, of sequences the last state, and the gradients of all tensors, in their order."""
        if self.op == "scan2d":
            return run_map(backend, tensors, self.options)
        return run_with_last_state(backend, tensors, self.options["delta_softplus"])

    @property
    def of_tokens(self) -> list[str]:
        """Name the tensors whose dtypes must agree: B and C may be weights."""
        weights = [name for name in ("B", "C") if self.op == "selective_scan" and len(self.shapes[name]) == 2]
        return [name for name in PER_TOKEN[self.op] if name in self.shapes and name not in weights]

    def y_shape(self) -> tuple[int, ...]:
        batch, *sizes = next(iter(self.shapes.values()))
        routes = [] if self.options.get("merge", True) else [len(self.options["routes"])]
        return (batch, *routes, *sizes)


# --- valid arguments ------------------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn, axes: int) -> Layout:
    """Draw a layout that is permuted, sliced, expanded, or all of it."""
    plain = Layout(tuple(range(axes)), (1,) * axes, (False,) * axes)
    kinds = draw(st.sampled_from([("order",), ("steps",), ("expanded",), ("order", "steps", "expanded")]))
    values = {
        "order": st.permutations(range(axes)).map(tuple),
        "steps": st.tuples(*[st.sampled_from([1, 2, 3])] * axes),
        "expanded": st.tuples(*[st.booleans()] * axes),
    }
    return dataclasses.replace(plain, **{kind: draw(values[kind]) for kind in kinds})


@st.composite
def calls_with(draw: st.DrawFn, op: str, shapes: dict[str, tuple[int, ...]], options: dict) -> Call:
    """Draw the dtypes, one of a weight now and then of its own, and layouts."""
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    dtypes = dict.fromkeys(shapes, dtype)
    for name in shapes:
        if name not in PER_TOKEN[op]:
            dtypes[name] = draw(st.sampled_from([torch.promote_types(dtype, torch.float32)] * 4 + list(TOLERANCE)))
    places = {name: draw(layouts(len(shape))) for name, shape in shapes.items() if draw(st.booleans())}
    return Call(op, shapes, dtypes, places, options, draw(st.integers(0, 2**16)))


BATCHES, CHANNELS, STATES = st.sampled_from([1, 2, 3, 1, 2, 0, 3, 1, 2, 3]), st.integers(1, 40), st.integers(1, 5)


@st.composite
def sequence_calls(draw: st.DrawFn) -> Call:
    batch, state = draw(BATCHES), draw(STATES)
    length = draw(st.integers(*draw(st.sampled_from([*[(1, 9)] * 4, (0, 0), *[(10, 200)] * 5]))))
    groups = draw(st.sampled_from([1, 1, 2, 3, 4]))
    channels = groups * draw(st.integers(1, 40 // groups))
    per_token = (batch, channels, length)
    projections = [(batch, groups, state, length)] * 4 + [(channels, state)]
    if groups == 1:
        projections += [(batch, state, length)] * 2
    B, C = draw(st.sampled_from(projections)), draw(st.sampled_from(projections))
    shapes = {"u": per_token, "delta": per_token, "A": (channels, state), "B": B, "C": C}
    optional = {"D": (channels,), "delta_bias": (channels,), "z": per_token, "h0": (batch, channels, state)}
    shapes.update({name: optional[name] for name in OPTIONAL if draw(st.booleans())})
    return draw(calls_with("selective_scan", shapes, {"delta_softplus": draw(st.booleans())}))


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Draw a small map, one longer than a chunk along one axis or both, or an empty one."""
    kind = draw(st.sampled_from(["small", "small", "small", "long", "long", "empty", "large", "large", "large"]))
    if kind == "large":
        return draw(st.integers(9, 14)), draw(st.integers(9, 14))
    side = draw(st.integers(*{"small": (1, 9), "long": (10, 200), "empty": (0, 9)}[kind]))
    size = side, draw(st.integers(1, 9)) if kind == "small" else {"long": 1, "empty": 0}[kind]
    return draw(st.sampled_from([size, size[::-1]]))


@st.composite
def map_calls(draw: st.DrawFn) -> Call:
    batch, channels, state, rank = draw(BATCHES), draw(CHANNELS), draw(STATES), draw(st.integers(1, 9))
    routes = tuple(draw(st.lists(st.sampled_from(ROUTES), min_size=1, max_size=4)))
    carry, sets = draw(st.sampled_from([(True, 1), (False, 1), (False, len(routes))]))
    options = {"routes": routes, "carry": carry, "merge": draw(st.booleans())}
    return draw(calls_with("scan2d", map_shapes((batch, *draw(sizes())), sets, channels, state, rank), options))


def map_shapes(
    tokens: tuple[int, int, int], sets: int, channels: int, state: int, rank: int
) -> dict[str, tuple[int, ...]]:
    return {
        "x": (*tokens, channels),
        "dt": (*tokens, sets, rank),
        "B": (*tokens, sets, state),
        "C": (*tokens, sets, state),
        "W_dt": (sets, channels, rank),
        "b_dt": (sets, channels),
        "A": (sets, channels, state),
        "Dskip": (sets, channels),
    }


ANY_CALL = st.one_of(sequence_calls(), map_calls())


def memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy the memory that tensors lie in, the gaps between their elements too, byte by byte."""
    storages = {name: tensor.untyped_storage() for name, tensor in tensors.items()}
    return {name: torch.empty(0, dtype=torch.uint8).set_(storage).clone() for name, storage in storages.items()}


def assert_unchanged(tensors: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    for name, now in memory(tensors).items():
        assert torch.equal(now, before[name]), f"{name} was written to"


def check(call: Call) -> None:
    tensors = call.tensors()
    exact = {name: tensor.double().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    expected, before = call.outcome("reference", exact), memory(tensors)
    assert expected[0].shape == call.y_shape()
    for backend in OURS:
        results = {"y": call.dtype}
        if call.op == "selective_scan":
            results["last state"] = torch.promote_types(call.dtype, torch.float32)
        dtypes = {**results, **{name: tensor.dtype for name, tensor in tensors.items()}}
        for (name, dtype), ours, theirs in zip(dtypes.items(), call.outcome(backend, tensors), expected, strict=True):
            assert ours.dtype == dtype, (backend, name)
            tolerance = max(TOLERANCE[call.dtype], TOLERANCE[dtype])
            assert_near(ours, theirs, tolerance, f"{backend}, {name}")
        assert_unchanged(tensors, before)


@SETTINGS
@given(sequence_calls())
def test_sequences(call):
    check(call)


@SETTINGS
@given(map_calls())
def test_maps(call):
    check(call)


@pytest.mark.parametrize("backend", OURS)
@SETTINGS
@given(call=ANY_CALL)
def test_y_lies_in_memory_as_promised(backend, call):
    """As u, or contiguous over a map: torch.compile and torch.export lay out for that what follows."""
    tensors = call.tensors()
    promised = torch.empty(call.y_shape())
    if call.op == "selective_scan":
        assume(2 not in (len(call.shapes["B"]), len(call.shapes["C"])))
        # Where u has gaps or shares memory, as kernels see it.
        promised = torch.empty_like(tensors["u"].transpose(1, 2)).transpose(1, 2)
    with use_backend(backend):
        y = OPS[call.op](**tensors, **call.options)
    assert y.shape == promised.shape
    if y.numel():  # the stride of an axis with one element means nothing
        both = zip(y.shape, y.stride(), promised.stride(), strict=True)
        assert all(ours == theirs for size, ours, theirs in both if size > 1), (y.stride(), promised.stride())


# --- spoiled arguments ----------------------------------------------------------------------------------------------


def refusal(call: Call, error: type | tuple[type, ...], *words: str, **spoiled: object) -> str:
    """Make a call that the op must refuse; return the message, which begins with its name and has all the words."""
    arguments = {**call.tensors(), **call.options, **spoiled}
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor) and not value.is_meta}
    before = memory(tensors)
    with pytest.raises(error) as caught:
        OPS[call.op](**arguments)
    message = str(caught.value)
    assert message.startswith(f"{call.op}: ")
    assert [word for word in words if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message)] == [], message
    assert_unchanged(tensors, before)
    return message


@st.composite
def wrong_sizes(draw: st.DrawFn) -> tuple[Call, str]:
    """Draw a call with one axis of one tensor longer or shorter, and the name of that tensor."""
    call = draw(ANY_CALL)
    name = draw(st.sampled_from(list(call.shapes)))
    shape = list(call.shapes[name])
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis] = draw(st.integers(0, 12).filter(lambda size: size != shape[axis]))
    assume(not is_projection(call, name, tuple(shape)))
    return call.spoil_shape(name, tuple(shape)), name


def is_projection(call: Call, name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a shape is one that B or C of selective_scan may have, too."""
    if call.op != "selective_scan" or name not in ("B", "C"):
        return False
    batch, channels, length = call.shapes["u"]
    state, other = call.shapes["A"][1], call.shapes["C" if name == "B" else "B"]
    groups = other[1] if len(other) == 4 else 1 if len(other) == 3 else None
    if len(shape) == 4 and groups is None:
        return channels % max(shape[1], 1) == 0 < shape[1] and shape == (batch, shape[1], state, length)
    of_tokens = [(batch, groups, state, length), *([(batch, state, length)] if groups in (1, None) else [])]
    return shape in [(channels, state), *of_tokens]


@st.composite
def wrong_axes(draw: st.DrawFn) -> tuple[Call, str]:
    """Draw a call with an axis more or fewer of one tensor, and the name of that tensor."""
    call = draw(ANY_CALL)
    name = draw(st.sampled_from(list(call.shapes)))
    shape = list(call.shapes[name])
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis : axis + 1] = draw(st.sampled_from([[], [1, shape[axis]], [shape[axis], 1]]))
    assume(not is_projection(call, name, tuple(shape)))
    return call.spoil_shape(name, tuple(shape)), name


def check_shape_error(call: Call, name: str) -> None:
    message = refusal(call, ValueError)
    # B and C of selective_scan have their shape from each other: where they differ, either may be the wrong one.
    suspects = ("B", "C") if call.op == "selective_scan" and name in ("B", "C") else (name,)
    assert any(re.search(rf"\b{n}\b.*{re.escape(str(call.shapes[n]))}", message) for n in suspects), message
    assert "expected" in message or "must have one number of groups" in message or "do not divide" in message, message


@SETTINGS
@given(wrong_sizes())
def test_a_wrong_size(spoiled):
    """The message has the argument, its shape, and the one that it should have."""
    check_shape_error(*spoiled)


@SETTINGS
@given(wrong_axes())
def test_a_wrong_number_of_axes(spoiled):
    check_shape_error(*spoiled)


NO_TENSORS = [1.0, [[0.0]], "x", object()]
NO_BOOLS = [0, 1, None, "yes", torch.tensor(True)]
NO_ROUTES = ["row", None, 0, {"row"}, (), ("diagonal",), ("row", None), ("col", 1), (["row"],), (torch.zeros(2),)]


@FEWER
@given(ANY_CALL, st.data())
def test_what_is_no_tensor(call, data):
    name = data.draw(st.sampled_from(list(call.shapes)))
    value = data.draw(st.sampled_from(NO_TENSORS if name in OPTIONAL else [None, *NO_TENSORS]))
    refusal(call, TypeError, name, type(value).__name__, **{name: value})


@FEWER
@given(ANY_CALL, st.data())
def test_a_dtype_that_is_no_float(call, data):
    name = data.draw(st.sampled_from(list(call.shapes)))
    dtype = data.draw(st.sampled_from([torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e5m2]))
    refusal(call, TypeError, name, str(dtype), **{name: torch.empty(call.shapes[name], dtype=dtype)})


@FEWER
@given(ANY_CALL, st.data())
def test_two_dtypes_among_what_tokens_have(call, data):
    name = data.draw(st.sampled_from(call.of_tokens))
    dtype = data.draw(st.sampled_from([dtype for dtype in TOLERANCE if dtype != call.dtype]))
    spoiled = dataclasses.replace(call, dtypes={**call.dtypes, name: dtype})
    refusal(spoiled, TypeError, name, str(dtype), str(call.dtype))


@FEWER
@given(ANY_CALL, st.data())
def test_two_devices(call, data):
    name = data.draw(st.sampled_from(list(call.shapes)))
    refusal(call, ValueError, name, "meta", "cpu", **{name: call.tensors()[name].to("meta")})


@FEWER
@given(ANY_CALL, st.data())
def test_a_switch_that_is_no_bool(call, data):
    name = data.draw(st.sampled_from(SWITCHES[call.op]))
    refusal(call, TypeError, name, **{name: data.draw(st.sampled_from(NO_BOOLS))})


@FEWER
@given(map_calls(), st.sampled_from(NO_ROUTES))
def test_wrong_routes(call, routes):
    refusal(call, (TypeError, ValueError), "routes", *ROUTES, routes=routes)


@FEWER
@given(st.data())
def test_a_wrong_number_of_parameter_sets(data):
    """Neither one nor one for each route; more than one where the state is carried over."""
    call = data.draw(map_calls())
    allowed = {1} if call.options["carry"] else {1, len(call.options["routes"])}
    sets = data.draw(st.integers(2, 6).filter(lambda sets: sets not in allowed))
    tokens, channels = call.shapes["x"][:3], call.shapes["x"][3]
    shapes = map_shapes(tokens, sets, channels, call.shapes["A"][2], call.shapes["W_dt"][2])
    refusal(dataclasses.replace(call, shapes=shapes, layouts={}), ValueError, "A", *map(str, {sets, *allowed}))


@FEWER
@given(sequence_calls(), st.integers(0, 41))
def test_groups_that_do_not_divide_the_channels(call, groups):
    batch, channels, length = call.shapes["u"]
    if groups and channels % groups == 0:
        groups = channels + 1
    shape = (batch, groups, call.shapes["A"][1], length)
    call = call.spoil_shape("B", shape).spoil_shape("C", shape)
    refusal(call, ValueError, "B", str(groups), str(channels))
