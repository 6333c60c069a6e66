"""MMEngine's checkpoints load under torch's weights_only default, and prepared ones still run nothing."""

import builtins
import importlib.metadata
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.optim import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint

import mmmsv.registry
from mmmsv.compat import mmengine_checkpoints as compat
from mmmsv.compat.plain_loading import load_plain

RESTRICTED = torch.__version__ >= (2, 6)


def load(path):
    """Load a checkpoint as MMEngine does; with a torch.load that runs what it is given, as the authors' are loaded."""
    return CheckpointLoader.load_checkpoint(str(path), map_location="cpu") if RESTRICTED else load_plain(Path(path))


class Regression(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, inputs, target, mode="tensor"):
        output = self.linear(inputs)
        return {"loss": (output - target).square().mean()} if mode == "loss" else output


class Points(torch.utils.data.Dataset):
    def __init__(self):
        self.metainfo = {"classes": ("far", "near"), "palette": [[1, 2, 3], [4, 5, 6]]}

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {"inputs": torch.full((3,), index / 6), "target": torch.ones(1)}


STEPS = {"type": "MultiStepLR", "milestones": [1]}


def make_runner(work_dir, max_epochs, param_scheduler=STEPS, **options):
    # A name of its own for each runner: MMEngine keeps message hubs by name.
    return Runner(
        model=Regression(),
        work_dir=str(work_dir),
        train_dataloader={
            "dataset": Points(),
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "batch_size": 2,
            "collate_fn": {"type": "default_collate"},
        },
        train_cfg={"by_epoch": True, "max_epochs": max_epochs},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01}},
        param_scheduler=param_scheduler,
        default_hooks={"logger": {"type": "LoggerHook", "interval": 1}},
        experiment_name=f"{work_dir.name}_{max_epochs}",
        **options,
    )


@pytest.fixture(autouse=True)
def own_statistics(monkeypatch):
    """HistoryBuffer keeps one table of methods for all of its instances: what a harmful file adds to it goes again."""
    monkeypatch.setattr(HistoryBuffer, "_statistics_methods", {})


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint as MMEngine writes it after two epochs, and the runner that wrote it."""
    runner = make_runner(tmp_path, max_epochs=2)
    runner.message_hub.update_info("score", np.float64(0.25))
    runner.message_hub.update_info("confusion", np.arange(6).reshape(2, 3))
    runner.train()
    return tmp_path / "epoch_2.pth", runner


def rewrite_pickle(path, change):
    """Change the pickled part of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_mmengine_checkpoint_loads(checkpoint, core):
    path, runner = checkpoint
    # NumPy 1 writes the one name, NumPy 2 the other.
    rewrite_pickle(path, lambda data: re.sub(rb"cnumpy\._?core\.", b"c" + core.encode() + b".", data))
    loaded = load(path)
    with zipfile.ZipFile(path) as archive:
        stored = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert b"c" + core.encode() + b".multiarray\nscalar" in stored
    assert b"HistoryBuffer" in stored
    assert b"getattr" in stored

    hub = loaded["message_hub"]
    assert hub["runtime_info"]["score"] == 0.25
    assert type(hub["runtime_info"]["score"]) is np.float64
    assert np.array_equal(hub["runtime_info"]["confusion"], [[0, 1, 2], [3, 4, 5]])
    assert set(hub["log_scalars"]) == set(runner.message_hub.log_scalars)
    assert {"train/loss", "train/lr"} <= set(hub["log_scalars"])
    for name, history in hub["log_scalars"].items():
        assert type(history) is HistoryBuffer
        for got, expected in zip(history.data, runner.message_hub.log_scalars[name].data, strict=True):
            assert type(got) is np.ndarray
            assert got.dtype == expected.dtype
            assert np.array_equal(got, expected)
    losses = hub["log_scalars"]["train/loss"]
    assert len(losses.data[0]) == 6
    assert losses.statistics("mean", 3) == losses.data[0][-3:].mean()
    losses.update(1.0)
    assert losses.current() == 1.0
    assert loaded["meta"]["dataset_meta"] == Points().metainfo
    assert loaded["meta"]["epoch"] == 2


@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
def test_one_cycle_schedule_resumes(tmp_path, anneal_strategy):
    """The state of this one holds a method, pickled through getattr."""
    cycle = {"type": "OneCycleLR", "eta_max": 0.1, "total_steps": 9, "by_epoch": False}
    schedule = {**cycle, "anneal_strategy": anneal_strategy}
    unbroken = make_runner(tmp_path / f"unbroken_{anneal_strategy}", max_epochs=3, param_scheduler=schedule)
    unbroken.train()
    resumed = make_runner(
        tmp_path / f"resumed_{anneal_strategy}",
        max_epochs=3,
        param_scheduler=schedule,
        resume=True,
        load_from=str(tmp_path / f"unbroken_{anneal_strategy}/epoch_2.pth"),
    )
    resumed.train()
    rates = [runner.message_hub.get_scalar("train/lr").data[0] for runner in (unbroken, resumed)]
    assert len(set(rates[0])) == 9
    assert np.array_equal(*rates)


def test_weights_of_mmengine_checkpoint_load(checkpoint):
    path, runner = checkpoint
    model = Regression()
    load_checkpoint(model, str(path), map_location="cpu", strict=True)
    assert torch.equal(model.linear.weight, runner.model.linear.weight)


def test_training_resumes_from_mmengine_checkpoint(checkpoint, tmp_path):
    path, runner = checkpoint
    resumed = make_runner(tmp_path, max_epochs=3, resume=True, load_from=str(path))
    resumed.train()
    assert resumed.epoch == 3
    losses = resumed.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == 9
    assert np.array_equal(losses[:6], runner.message_hub.get_scalar("train/loss").data[0])
    # The checkpoint of the resumed run holds no trace of how the first one was loaded.
    last = load(tmp_path / "epoch_3.pth")
    assert len(last["message_hub"]["log_scalars"]["train/loss"].data[0]) == 9
    with zipfile.ZipFile(tmp_path / "epoch_3.pth") as archive:
        assert not any(b"mmmsv" in archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))


@pytest.mark.parametrize(
    "value",
    [
        np.float32(2.5),
        np.int64(-3),
        np.bool_(True),
        np.complex64(1j),
        np.str_("far"),
        np.str_(""),
        np.bytes_(b"near"),
        np.arange(6).astype(">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(12)[::3],
        np.array(["far", "nearer"]),
        np.array(4.0),
        np.zeros((0, 3), dtype=np.uint8),
        np.array([True, False]),
        b"",
    ],
    ids=repr,
)
def test_plain_values_come_back(tmp_path, value):
    path = tmp_path / "value.pth"
    for _ in range(2):  # what was loaded can be saved again, as plain NumPy data
        torch.save({"value": value}, path)
        loaded = load(path)["value"]
        assert isinstance(loaded, type(value))
        assert np.array_equal(loaded, value)
        if not isinstance(value, bytes):
            assert loaded.dtype == value.dtype.newbyteorder("=")
            assert loaded.shape == value.shape
        value = loaded
    assert b"mmmsv" not in path.read_bytes()


def test_empty_history_comes_back(tmp_path):
    path = tmp_path / "history.pth"
    torch.save({"history": HistoryBuffer(max_length=7)}, path)
    history = load(path)["history"]
    assert [len(part) for part in history.data] == [0, 0]
    assert history.max_length == 7
    history.update(2.0)
    assert history.statistics("mean") == 2.0


class Call:
    """Pickles as the call of ``function`` with ``arguments``; both may be calls themselves."""

    def __init__(self, function, *arguments):
        self.function = function
        self.arguments = arguments

    def __call__(self):
        """Pickle takes nothing but callables as functions."""

    def __reduce__(self):
        return self.function, self.arguments


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


class HarmfulHistory(HistoryBuffer):
    """Pickles as a HistoryBuffer that calls something when its state is set."""

    def __init__(self, attribute, payload):
        super().__init__([1.0], [1])
        self.attribute = attribute
        self.payload = payload

    def __reduce__(self):
        state = {"max_length": 10, "_log_history": np.ones(1), "_count_history": np.ones(1, dtype=np.int64)}
        state["statistics_methods"] = {"mean": Call(getattr, HistoryBuffer, "mean")}
        if self.attribute == "mean":
            state["statistics_methods"]["mean"] = self.payload
        else:
            state[self.attribute] = self.payload
        return HistoryBuffer, (), state


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
            load_checkpoint(Regression(), str(path), map_location="cpu")
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
        "history": {"message_hub": {"log_scalars": {"loss": HarmfulHistory("max_length", payload)}}},
        "history method": {"message_hub": {"log_scalars": {"loss": HarmfulHistory("mean", payload)}}},
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


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HistoryBuffer, "__init__"),
        (HistoryBuffer, "__globals__"),
        (HistoryBuffer, "__class__"),
        (HistoryBuffer, "__subclasses__"),
        (HistoryBuffer, "update"),
        (HistoryBuffer, "statistics"),
        (HistoryBuffer, "register_statistics"),
        (HistoryBuffer, "_statistics_methods"),
        (OneCycleParamScheduler, "__init__"),
        (OneCycleParamScheduler, "step"),
        (OneCycleParamScheduler, "mean"),
        (np.ndarray, "tofile"),
        (np.ndarray, "max"),
        (torch.Tensor, "mean"),
        (torch.nn.Parameter, "__init__"),
        (Call(getattr, HistoryBuffer, "mean"), "__globals__"),
        (HistoryBuffer([1.0], [1]), "mean"),
        ("mean", "format"),
    ],
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
    entries = torch.serialization.get_safe_globals() if RESTRICTED else compat.SAFE_GLOBALS
    functions = [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
    assert compat._method in functions
    for dangerous in (getattr, bytes, HistoryBuffer, np.dtype, np.ndarray, *vars(builtins).values()):
        assert not any(function is dangerous for function in functions), dangerous


SCALAR = np.float64(0).__reduce__()[0]
RECONSTRUCT = np.ones(1).__reduce__()[0]


class Build:
    """Pickles as the call of ``function``, whose result is given ``state``."""

    def __init__(self, function, arguments, state):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


# Attributes, and the class that an object is to become: NumPy would take the bytes of such a scalar for an address.
FORGED_DTYPE = ({"dtype": {"names": ["a"], "formats": ["O"]}}, {"__class__": np.dtype})


def _begun_array(shape, dtype, data):
    return Build(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([{}], dtype=object), "numbers and strings"),
        (np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), "numbers and strings"),
        (np.array(["2024-05-23"], dtype="datetime64[D]"), "numbers and strings"),
        (Call(np.dtype, [("a", "O")]), "numbers and strings"),
        (Call(np.dtype, "f3"), "knows no type 'f3'"),
        (Build(np.dtype, ("f8", False, True), (3, "<", (np.dtype("f8"), (9,)), None, None, -1, -1, 0)), "plain NumPy"),
        (Build(np.dtype, ("f8", False, True), (3, "<", None, ("a",), {"a": (1, 0)}, 8, 8, 63)), "plain NumPy"),
        (Build(np.dtype, ("f8", False, True), (3, "x", None, None, None, -1, -1, 0)), "plain NumPy"),
        (Build(np.dtype, ("f8", False, True), "<"), "plain NumPy"),
        (
            Call(SCALAR, Build(OneCycleParamScheduler, (), FORGED_DTYPE), b"addresss"),
            "OneCycleParamScheduler, and make",
        ),
        (Call(SCALAR, np.dtype("f8"), b"1234"), "scalar do not fit"),
        (Call(SCALAR, np.dtype("f8"), "12345678"), "scalar do not fit"),
        (Call(SCALAR, "f8", b"12345678"), "expected a plain NumPy type"),
        (Call(RECONSTRUCT, np.ndarray, (4,), b"b"), "not the way NumPy writes"),
        (Call(RECONSTRUCT, np.ndarray, (0,), "O"), "not the way NumPy writes"),
        (Call(RECONSTRUCT, HistoryBuffer, (0,), b"b"), "not the way NumPy writes"),
        (_begun_array((3,), np.dtype("f8"), b"12345678"), "do not fit shape"),
        (_begun_array((-1, -1), np.dtype("f8"), b"12345678"), "do not fit shape"),
        (_begun_array((1,), np.dtype("f8"), [1.0]), "do not fit shape"),
        (_begun_array((1,), "f8", b"12345678"), "expected a plain NumPy type"),
        (Build(RECONSTRUCT, (np.ndarray, (0,), b"b"), "state"), "not the state of a NumPy array"),
        (HarmfulHistory("max_length", "10"), "not the state of a HistoryBuffer"),
        (HarmfulHistory("_log_history", [1.0]), "not the state of a HistoryBuffer"),
        (HarmfulHistory("update", 1), "not the state of a HistoryBuffer"),
        (HarmfulHistory("mean", Call(getattr, HistoryBuffer, "max")), "not its own"),
        (HarmfulHistory("statistics_methods", {"median": Call(getattr, HistoryBuffer, "max")}), "not its own"),
    ],
)
def test_forged_data_are_refused(tmp_path, value, message):
    path = harmless_file(tmp_path / "forged.pth", {"message_hub": {"value": value}})
    assert message in refused(path, tmp_path / "marker")
    assert HistoryBuffer([1.0, 3.0], [1, 1]).statistics("mean") == 2.0


def test_forged_flags_of_a_number_have_no_effect(tmp_path):
    """NumPy takes these flags for those of an object array and then treats the numbers as addresses."""
    forged = Build(np.dtype, ("f8", False, True), (3, "<", None, None, None, 8, 8, 63))
    path = harmless_file(tmp_path / "forged.pth", {"array": _begun_array((1,), forged, np.float64(1.5).tobytes())})
    array = load(path)["array"]
    assert not array.dtype.hasobject
    assert array.dtype.flags == np.dtype("f8").flags
    assert array.tolist() == [1.5]


def test_array_does_not_take_data_twice(tmp_path):
    """The second time would free memory that a tensor made of the array still looks into."""
    path = harmless_file(tmp_path / "twice.pth", {})
    state = (1, (1,), np.dtype("f8"), False, b"12345678")
    once = pickle.dumps(_begun_array(*state[1:3], state[4]), protocol=2)
    assert once.endswith(b"b.")  # BUILD, STOP
    rewrite_pickle(path, lambda _: once)
    assert load(path).tobytes() == state[4]
    rewrite_pickle(path, lambda _: once[:-1] + pickle.dumps(state, protocol=2)[2:-1] + b"b.")
    assert "given its data twice" in refused(path, tmp_path / "marker")


@pytest.mark.parametrize("arguments", [((4,), "u1"), ((4,), "u1", b"abcd"), ((1,), "O")])
def test_arrays_are_not_made_by_arguments(tmp_path, arguments):
    """The arguments of numpy.ndarray make arrays that look into the memory of others."""
    path = harmless_file(tmp_path / "view.pth", {"value": Call(np.ndarray, *arguments)})
    with pytest.raises(TypeError, match="positional argument"):
        load(path)


@pytest.mark.parametrize(
    "name", ["torch._utils\n_rebuild_tensor_v2", "mmengine.logging.history_buffer\nHistoryBuffer", "numpy\ndtype"]
)
def test_functions_and_classes_are_not_changed(tmp_path, name):
    """A pickle can set the attributes of whatever it holds; those of a function would outlive the file."""
    path = harmless_file(tmp_path / "change.pth", {})
    state = pickle.dumps((None, {"__defaults__": (1,), "__setstate__": 1}), protocol=2)[2:-1]
    rewrite_pickle(path, lambda _: b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
    refused(path, tmp_path / "marker")


def test_version():
    assert mmmsv.__version__ == importlib.metadata.version("mmmsv")


@pytest.mark.slow
def test_kernels_import_nothing_of_openmmlab(tmp_path):
    script = (
        "import sys\n"
        "import mmmsv.kernels\n"
        "print(callable(mmmsv.kernels.selective_scan), {'mmengine', 'mmcv', 'mmdet'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True", "set()"]
