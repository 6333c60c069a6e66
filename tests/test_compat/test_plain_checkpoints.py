"""``mmmsv.CheckpointHook`` writes plain data, and a run that is resumed finds what was there before."""

import copy
import io
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import load_checkpoint

from mmmsv.compat.plain_checkpoints import NOTE, make_plain, restore
from mmmsv.engine import CheckpointHook

from .checkpoint_files import nothing_allowed
from .test_mmengine_checkpoints import Regression, make_runner

OURS = {"default_hooks": {"checkpoint": {"type": "mmmsv.CheckpointHook", "interval": 1}}}


def load_plainly(path, **options):
    with nothing_allowed():
        return torch.load(path, map_location="cpu", **options)


def through_a_file(checkpoint):
    file = io.BytesIO()
    torch.save(checkpoint, file)
    file.seek(0)
    return load_plainly(file)


def assert_equal(got, expected):
    assert type(got) is type(expected)
    if isinstance(expected, HistoryBuffer):
        assert_equal(got.data, expected.data)
        assert got.max_length == expected.max_length
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        for key, value in expected.items():
            assert_equal(got[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, (np.ndarray, np.generic)):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(got, expected)
    else:
        assert got is expected or np.array_equal(got, expected)


VALUES = [
    *(np.float64(0.25), np.float32(0.1), np.float16(0.1), np.int64(-3), np.uint8(3), np.bool_(True), np.complex64(1j)),
    *(np.str_("far"), np.str_("")),
    *(np.arange(6).reshape(2, 3), np.arange(6).astype(">f4"), np.arange(12)[::-3], np.array(4.0), np.zeros((0, 3))),
    *(np.array([[1, 2]], dtype=np.uint32), np.array([True, False]), np.array(["far", "nearer"]), np.array([], "U5")),
    np.random.RandomState(0).get_state(),
    HistoryBuffer([0.5, 0.25], [1, 2], max_length=7),
    HistoryBuffer(),
    ConfigDict(thing={"classes": ("a", "b")}, palette=[[1, 2, np.int64(3)]]),
    (1, [np.float64(1), {"deep": (np.float32(2),)}], "text", None, 1.5, {1, 2}, Counter("aab")),
]


@pytest.mark.parametrize("value", VALUES)
def test_values_come_back(value):
    checkpoint = {"meta": {"epoch": 1}, "of_a_hook": {"value": value, 3: "other"}}
    before = copy.deepcopy(checkpoint["of_a_hook"])
    given = dict(checkpoint)
    make_plain(given)
    assert_equal(checkpoint["of_a_hook"], before)  # what the hook holds is not changed
    loaded = through_a_file(given)
    restore(loaded)
    assert_equal(loaded["of_a_hook"], before)
    assert loaded["meta"] == {"epoch": 1}


def test_plain_numbers_are_easy_to_read():
    hub = {"log_scalars": {"loss": HistoryBuffer([1.5], [1])}, "runtime_info": {"best_score": np.float64(0.5)}}
    checkpoint = {"message_hub": hub, "by_class": {np.int64(3): np.float64(0.25)}}
    make_plain(checkpoint)
    loaded = through_a_file(checkpoint)
    assert type(loaded["message_hub"]["runtime_info"]["best_score"]) is float
    assert loaded["message_hub"]["log_scalars"]["loss"]["log_history"].tolist() == [1.5]
    restore(loaded)
    assert loaded["by_class"][np.int64(3)] == 0.25


def test_what_is_plain_is_passed_on():
    """The dict of a model's weights has attributes, by which modules rename what they load."""
    weights = torch.nn.BatchNorm1d(2).state_dict()
    checkpoint = {"state_dict": weights, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    given = dict(checkpoint)
    make_plain(given)
    assert given["state_dict"] is weights
    assert given["optimizer"] is checkpoint["optimizer"]
    weights["extra"] = np.float64(1)
    make_plain(given)
    assert type(given["state_dict"]) is OrderedDict
    assert given["state_dict"]._metadata == weights._metadata
    assert type(weights["extra"]) is np.float64


@pytest.mark.parametrize("restored", [True, False], ids=["restored", "by MMEngine alone"])
def test_message_hub_goes_on(restored):
    hub = MessageHub("a hub that is saved")
    hub.update_scalar("train/loss", 0.5)
    hub.update_info("best_score", np.float64(0.25))
    hub.update_info("best_ckpt", "best.pth")
    checkpoint = {"message_hub": hub.state_dict()}
    make_plain(checkpoint)
    loaded = through_a_file(checkpoint)
    if restored:
        restore(loaded)
    resumed = MessageHub(f"a hub that is resumed {restored}")
    resumed.load_state_dict(loaded["message_hub"])
    assert resumed.runtime_info == {"best_score": 0.25, "best_ckpt": "best.pth"}
    assert list(resumed.log_scalars) == (["train/loss"] if restored else [])
    resumed.update_scalar("train/loss", 0.25)
    assert resumed.get_scalar("train/loss").current() == 0.25


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note["ndarray"][0].__setitem__(1, "O"),
        lambda note: note["ndarray"][0].__setitem__(1, "u4,O"),
        lambda note: note["ndarray"][0].__setitem__(2, (7,)),
        lambda note: note["ndarray"][0].__setitem__(0, ("values", 5)),
        lambda note: note["ndarray"][0].__setitem__(0, 5),
        lambda note: note["generic"][0].__setitem__(1, "M8[D]"),
        lambda note: note["generic"].append("text"),
        lambda note: note["HistoryBuffer"].append(("values", 0)),
        lambda note: note["ConfigDict"].append(("values", 0)),
        lambda note: note.__setitem__("ndarray", 5),
        lambda note: note.pop("generic"),
    ],
)
def test_forged_notes_are_refused(change):
    checkpoint = {"values": (np.ones(2), np.float64(1))}
    make_plain(checkpoint)
    note = checkpoint["meta"][NOTE]
    note.update({kind: [list(entry) for entry in note[kind]] for kind in ("ndarray", "generic")})
    change(note)
    with pytest.raises(ValueError, match=r"meta\['made_plain'\] of this checkpoint.* does not fit its data"):
        restore(checkpoint)


def test_parts_that_were_removed_are_passed_over():
    """``publish_model`` keeps ``meta`` and the weights."""
    checkpoint = {"message_hub": {"runtime_info": {"score": np.float64(1)}}, "meta": {"classes": np.array(["far"])}}
    make_plain(checkpoint)
    del checkpoint["message_hub"]
    restore(checkpoint)
    assert_equal(checkpoint, {"meta": {"classes": np.array(["far"])}})


@pytest.mark.parametrize("other", [{}, {"meta": None}, {"meta": {"epoch": 1}}, OrderedDict(weight=None)], ids=repr)
def test_other_checkpoints_stay(other):
    before = copy.deepcopy(other)
    restore(other)
    assert other == before


class NumPyHook(Hook):
    """Keeps NumPy values of its own, and takes them back, as hooks do that save the state of a generator."""

    priority = "LOWEST"
    found = None

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint["of_a_hook"] = {"state": np.arange(3, dtype=np.uint32), "score": np.float64(0.5)}
        runner.message_hub.update_info("by_a_hook", np.float32(0.1))

    def after_load_checkpoint(self, runner, checkpoint):
        self.found = checkpoint["of_a_hook"]


SCHEDULES = {
    "OneCycleLR": {"type": "OneCycleLR", "eta_max": 0.1, "total_steps": 9, "by_epoch": False},
    "MultiStepLR": {"type": "MultiStepLR", "milestones": [1, 2]},
    "ReduceOnPlateauLR": {"type": "ReduceOnPlateauLR", "monitor": "loss"},
}


@pytest.fixture(params=SCHEDULES)
def saved(request, tmp_path):
    """A run of three epochs with our hook, an average of the weights and a hook that saves NumPy values."""
    ema = {"type": "EMAHook", "momentum": 0.2}
    options = {"param_scheduler": SCHEDULES[request.param], **OURS, "custom_hooks": [ema, NumPyHook()]}
    runner = make_runner(tmp_path / request.param, max_epochs=3, **options)
    runner.train()
    return runner, options


def test_run_resumes_as_it_was(saved, tmp_path):
    runner, options = saved
    path = f"{runner.work_dir}/epoch_2.pth"
    plain = load_plainly(path, mmap=True)
    assert {"state_dict", "ema_state_dict", "optimizer", "param_schedulers", "message_hub", "of_a_hook"} <= set(plain)
    model = Regression()
    load_checkpoint(model, path, map_location="cpu", strict=True)

    hook = NumPyHook()
    options["custom_hooks"] = [options["custom_hooks"][0], hook]
    resumed = make_runner(tmp_path / "resumed", max_epochs=3, **options, resume=True, load_from=path)
    resumed.train()
    assert_equal(hook.found, {"state": np.arange(3, dtype=np.uint32), "score": np.float64(0.5)})
    for name in ("train/loss", "train/lr"):
        histories = [one.message_hub.get_scalar(name).data for one in (resumed, runner)]
        assert len(histories[0][0]) == 9
        if name == "train/lr":
            assert_equal(*histories)
        else:  # the batches of the third epoch are drawn anew
            assert_equal(*[tuple(part[:6] for part in history) for history in histories])
    kept = {key: type(value) for key, value in runner.message_hub.runtime_info.items()}
    assert {key: type(value) for key, value in resumed.message_hub.runtime_info.items()} == kept
    assert kept["by_a_hook"] is np.float32


@pytest.mark.parametrize("saved", ["OneCycleLR"], indirect=True)
def test_stock_hook_resumes(saved, tmp_path):
    """Histories begin anew; the rest goes on."""
    runner, options = saved
    options = {**options, "custom_hooks": options["custom_hooks"][:1]}
    del options["default_hooks"]
    path = f"{runner.work_dir}/epoch_2.pth"
    resumed = make_runner(tmp_path / "resumed", max_epochs=3, **options, resume=True, load_from=path)
    resumed.train()
    assert resumed.epoch == 3
    rates = [one.message_hub.get_scalar("train/lr").data[0] for one in (runner, resumed)]
    assert np.array_equal(rates[0][6:], rates[1])


def test_best_scores_are_kept(tmp_path):
    """Of several metrics, each with its checkpoint."""
    hook = CheckpointHook(interval=1, save_best=["near", "far"], rule="greater")
    runner = make_runner(tmp_path, max_epochs=2, default_hooks={"checkpoint": hook})
    runner.train()
    hook.after_val_epoch(runner, {"near": np.float64(0.5), "far": np.float32(0.1)})
    for name in ("best_near_epoch_2.pth", "best_far_epoch_2.pth", "epoch_2.pth"):
        loaded = load_plainly(tmp_path / name)
        assert type(loaded["message_hub"]["runtime_info"]["best_score_near"]) is float
        restore(loaded)
        assert_equal(loaded["message_hub"]["runtime_info"]["best_score_near"], np.float64(0.5))
    assert_equal(loaded["message_hub"]["runtime_info"]["best_score_far"], np.float32(0.1))
