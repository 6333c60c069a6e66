"""Prepared checkpoints are refused, and nothing in them runs."""

import builtins
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler
from mmengine.runner import load_checkpoint

from mmmsv.compat import mmengine_checkpoints

from .checkpoint_files import RESTRICTED, load, rewrite_pickle


@pytest.fixture(autouse=True)
def own_statistics(monkeypatch):
    """HistoryBuffer keeps one table of methods for all of its instances: what a harmful file adds to it goes again."""
    monkeypatch.setattr(HistoryBuffer, "_statistics_methods", {})


class Call:
    """Pickles as the call of ``function`` with ``arguments``, whose result is given ``state``; all may be calls."""

    def __init__(self, function, *arguments, state=None):
        self.parts = function, arguments, state

    def __call__(self):
        """Pickle takes nothing but callables as functions."""

    def __reduce__(self):
        return self.parts


def _eval_by_getattr(code):
    """``eval`` from HistoryBuffer by getattr alone: no name in the file is harmful by itself."""
    function_globals = Call(getattr, Call(getattr, HistoryBuffer, "__init__"), "__globals__")
    builtins_of_module = Call(Call(getattr, function_globals, "get"), "__builtins__")
    return Call(Call(Call(getattr, builtins_of_module, "get"), "eval"), code)


def _getattr_of_os(marker):
    """The pickle of ``getattr(posixpath.os, "system")(...)``; a module cannot be pickled, but named."""

    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    call = b"c__builtin__\ngetattr\ncposixpath\nos\n" + text("system") + b"\x86R" + text(f"touch {marker}") + b"\x85R"
    return b"\x80\x02" + call + b"."


def harmful_history(attribute, payload):
    """A HistoryBuffer with ``payload`` in its state."""
    state = {"max_length": 10, "_log_history": np.ones(1), "_count_history": np.ones(1, dtype=np.int64)}
    state["statistics_methods"] = {"mean": Call(getattr, HistoryBuffer, "mean")}
    (state["statistics_methods"] if attribute == "mean" else state)[attribute] = payload
    return Call(HistoryBuffer, state=state)


HARMFUL = {
    "os.system": lambda marker: Call(os.system, f"touch {marker}"),
    "eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
    "open": lambda marker: Call(open, str(marker), "w"),
    "subprocess": lambda marker: Call(subprocess.call, ["touch", str(marker)]),
    "import": lambda marker: Call(Call(getattr, Call(__import__, "os"), "system"), f"touch {marker}"),
    "getattr of a class": lambda marker: _eval_by_getattr(f"open({str(marker)!r}, 'w')"),
    "getattr of an instance": lambda marker: Call(
        Call(getattr, HistoryBuffer([1.0], [1]), "register_statistics"), Call(os.system, f"touch {marker}")
    ),
    "array method": lambda marker: Call(Call(getattr, np.ones(2), "tofile"), str(marker)),
    "argument of an array": lambda marker: Call(np.ndarray, (1,), Call(os.system, f"touch {marker}")),
}


def harmless_file(path, content):
    torch.save(content, path)
    return path


def refused(path, marker):
    with pytest.raises(pickle.UnpicklingError) as error:
        load(path)
    assert not marker.exists(), "the payload ran"
    if RESTRICTED:
        with pytest.raises(pickle.UnpicklingError):
            load_checkpoint(torch.nn.Linear(3, 1), str(path), map_location="cpu")
        assert not marker.exists(), "the payload ran"
    return str(error.value)


def assert_harmful(path, marker):
    """The payload would run if anything were allowed: otherwise the test shows nothing."""
    try:
        torch.load(path, weights_only=False)
    except Exception as error:  # noqa: BLE001  what comes after the payload may fail in any way
        print(f"after the payload: {error!r}")
    assert marker.exists()
    marker.unlink()


@pytest.mark.parametrize("place", ["state_dict", "message_hub", "history", "history method", "array"])
@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_checkpoint_is_refused(tmp_path, name, place):
    marker = tmp_path / "marker"
    payload = HARMFUL[name](marker)
    content = {
        "state_dict": {"state_dict": {"linear.weight": payload}},
        "message_hub": {"state_dict": {}, "message_hub": {"runtime_info": {"seed": payload}}},
        "history": {"message_hub": {"log_scalars": {"loss": harmful_history("max_length", payload)}}},
        "history method": {"message_hub": {"log_scalars": {"loss": harmful_history("mean", payload)}}},
        "array": {"message_hub": {"runtime_info": {"array": np.array([payload, 1], dtype=object)}}},
    }[place]
    path = harmless_file(tmp_path / "harmful.pth", content)
    assert not marker.exists()
    assert_harmful(path, marker)
    refused(path, marker)


def test_harmful_pickle_that_names_a_module_is_refused(tmp_path):
    marker = tmp_path / "marker"
    path = harmless_file(tmp_path / "harmful.pth", {})
    rewrite_pickle(path, lambda _: _getattr_of_os(marker))
    assert_harmful(path, marker)
    assert "posixpath.os" in refused(path, marker)


NOT_SERVED = (
    *((HistoryBuffer, name) for name in ("__init__", "__globals__", "__class__", "__subclasses__", "update")),
    *((HistoryBuffer, name) for name in ("statistics", "register_statistics", "_statistics_methods")),
    *((OneCycleParamScheduler, name) for name in ("__init__", "step", "mean")),
    *((np.ndarray, "tofile"), (np.ndarray, "max"), (torch.Tensor, "mean"), (torch.nn.Parameter, "__init__")),
    (Call(getattr, HistoryBuffer, "mean"), "__globals__"),
    *((HistoryBuffer([1.0], [1]), "mean"), ("mean", "format")),
)


@pytest.mark.parametrize(
    ("owner", "name"),
    NOT_SERVED,
    ids=lambda value: repr(value) if isinstance(value, (str, type)) else f"a {type(value).__name__}",
)
def test_getattr_serves_nothing_but_statistics(tmp_path, owner, name):
    path = harmless_file(tmp_path / "getattr.pth", {"value": Call(getattr, owner, name)})
    message = refused(path, tmp_path / "marker")
    assert "asks for getattr(" in message
    assert repr(name) in message


@pytest.mark.parametrize("name", ["min", "max", "current", "mean"])
def test_getattr_serves_statistics(tmp_path, name):
    path = harmless_file(tmp_path / "getattr.pth", {"value": Call(getattr, HistoryBuffer, name)})
    assert load(path)["value"] is getattr(HistoryBuffer, name)


def test_what_is_dangerous_was_not_registered():
    entries = torch.serialization.get_safe_globals() if RESTRICTED else mmengine_checkpoints.SAFE_GLOBALS
    functions = [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
    assert mmengine_checkpoints._method in functions
    for dangerous in (getattr, bytes, HistoryBuffer, np.dtype, np.ndarray, *vars(builtins).values()):
        assert not any(function is dangerous for function in functions), dangerous


SCALAR = np.float64(0).__reduce__()[0]
RECONSTRUCT = np.ones(1).__reduce__()[0]
# Attributes, and the class that an object is to become: NumPy would take the bytes of such a scalar for an address.
FORGED_DTYPE = ({"dtype": {"names": ["a"], "formats": ["O"]}}, {"__class__": np.dtype})


def _dtype(*state):
    return Call(np.dtype, "f8", False, True, state=state)


def _array(shape, dtype, data):
    return Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data))


# Name of the case: value, message.
FORGED = {
    "array of objects": (np.array([{}], dtype=object), "numbers and strings"),
    "array of records": (np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), "numbers and strings"),
    "array of dates": (np.array(["2024-05-23"], dtype="datetime64[D]"), "numbers and strings"),
    "dtype of a list": (Call(np.dtype, [("a", "O")]), "numbers and strings"),
    "dtype of no type": (Call(np.dtype, "f3"), "knows no type 'f3'"),
    "dtype with a subtype": (_dtype(3, "<", (np.dtype("f8"), (9,)), None, None, -1, -1, 0), "plain NumPy"),
    "dtype with fields": (_dtype(3, "<", None, ("a",), {"a": (1, 0)}, 8, 8, 63), "plain NumPy"),
    "dtype with another byte order": (_dtype(3, "x", None, None, None, -1, -1, 0), "plain NumPy"),
    "dtype with a short state": (Call(np.dtype, "f8", False, True, state="<"), "plain NumPy"),
    "dtype out of another class": (
        Call(SCALAR, Call(OneCycleParamScheduler, state=FORGED_DTYPE), b"addresss"),
        "OneCycleParamScheduler, and make",
    ),
    "scalar of too few bytes": (Call(SCALAR, np.dtype("f8"), b"1234"), "scalar do not fit"),
    "scalar of a string": (Call(SCALAR, np.dtype("f8"), "12345678"), "scalar do not fit"),
    "scalar without a dtype": (Call(SCALAR, "f8", b"12345678"), "expected a plain NumPy type"),
    "array begun with a size": (Call(RECONSTRUCT, np.ndarray, (4,), b"b"), "not the way NumPy writes"),
    "array begun with objects": (Call(RECONSTRUCT, np.ndarray, (0,), "O"), "not the way NumPy writes"),
    "array begun as another class": (Call(RECONSTRUCT, HistoryBuffer, (0,), b"b"), "not the way NumPy writes"),
    "array of too few bytes": (_array((3,), np.dtype("f8"), b"12345678"), "do not fit shape"),
    "array of negative sizes": (_array((-1, -1), np.dtype("f8"), b"12345678"), "do not fit shape"),
    "array of a list": (_array((1,), np.dtype("f8"), [1.0]), "do not fit shape"),
    "array without a dtype": (_array((1,), "f8", b"12345678"), "expected a plain NumPy type"),
    "array with a string as state": (
        Call(RECONSTRUCT, np.ndarray, (0,), b"b", state="state"),
        "not the state of a NumPy array",
    ),
    "history with a string as length": (harmful_history("max_length", "10"), "not the state of a HistoryBuffer"),
    "history with a list": (harmful_history("_log_history", [1.0]), "not the state of a HistoryBuffer"),
    "history with a method as value": (harmful_history("update", 1), "not the state of a HistoryBuffer"),
    "history with exchanged methods": (harmful_history("mean", Call(getattr, HistoryBuffer, "max")), "not its own"),
    "history with another method": (
        harmful_history("statistics_methods", {"median": Call(getattr, HistoryBuffer, "max")}),
        "not its own",
    ),
}


@pytest.mark.parametrize(("value", "message"), FORGED.values(), ids=FORGED)
def test_forged_data_are_refused(tmp_path, value, message):
    path = harmless_file(tmp_path / "forged.pth", {"message_hub": {"value": value}})
    assert message in refused(path, tmp_path / "marker")
    assert HistoryBuffer([1.0, 3.0], [1, 1]).statistics("mean") == 2.0


def test_forged_flags_of_a_number_have_no_effect(tmp_path):
    """NumPy takes these flags for those of an object array and then treats the numbers as addresses."""
    forged = _dtype(3, "<", None, None, None, 8, 8, 63)
    path = harmless_file(tmp_path / "forged.pth", {"array": _array((1,), forged, np.float64(1.5).tobytes())})
    array = load(path)["array"]
    assert not array.dtype.hasobject
    assert array.dtype.flags == np.dtype("f8").flags
    assert array.tolist() == [1.5]


def test_array_does_not_take_data_twice(tmp_path):
    """The second time would free memory that a tensor made of the array still looks into."""
    path = harmless_file(tmp_path / "twice.pth", {})
    state = (1, (1,), np.dtype("f8"), False, b"12345678")
    once = pickle.dumps(_array(*state[1:3], state[4]), protocol=2)
    assert once.endswith(b"b.")  # BUILD, STOP
    rewrite_pickle(path, lambda _: once)
    assert load(path).tobytes() == state[4]
    rewrite_pickle(path, lambda _: once[:-1] + pickle.dumps(state, protocol=2)[2:-1] + b"b.")
    assert "given its data twice" in refused(path, tmp_path / "marker")


@pytest.mark.parametrize(
    "arguments", [((4,), "u1"), ((4,), "u1", b"abcd"), ((1,), "O")], ids=["without data", "with data", "of objects"]
)
def test_arrays_are_not_made_by_arguments(tmp_path, arguments):
    """The arguments of numpy.ndarray make arrays that look into the memory of others."""
    path = harmless_file(tmp_path / "view.pth", {"value": Call(np.ndarray, *arguments)})
    with pytest.raises(TypeError, match="positional argument"):
        load(path)


@pytest.mark.parametrize(
    "name",
    ["torch._utils\n_rebuild_tensor_v2", "mmengine.logging.history_buffer\nHistoryBuffer", "numpy\ndtype"],
    ids=["function", "HistoryBuffer", "dtype"],
)
def test_functions_and_classes_are_not_changed(tmp_path, name):
    """A pickle can set the attributes of whatever it holds; those of a function would outlive the file."""
    path = harmless_file(tmp_path / "change.pth", {})
    state = pickle.dumps((None, {"__defaults__": (1,), "__setstate__": 1}), protocol=2)[2:-1]
    rewrite_pickle(path, lambda _: b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
    refused(path, tmp_path / "marker")
