"""MMEngine's checkpoints load under torch's weights_only default, and come back as they were saved."""

import itertools
import re
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint

from .checkpoint_files import load, rewrite_pickle


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


_numbers = itertools.count()
STEPS = {"type": "MultiStepLR", "milestones": [1]}


def make_runner(work_dir, max_epochs, param_scheduler=STEPS, default_hooks=None, **options):
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
        default_hooks={"logger": {"type": "LoggerHook", "interval": 1}, **(default_hooks or {})},
        experiment_name=f"run {next(_numbers)}",
        **options,
    )


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint as MMEngine writes it after two epochs, and the runner that wrote it."""
    runner = make_runner(tmp_path, max_epochs=2)
    runner.message_hub.update_info("score", np.float64(0.25))
    runner.message_hub.update_info("confusion", np.arange(6).reshape(2, 3))
    runner.train()
    return tmp_path / "epoch_2.pth", runner


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
