import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from .runs import TASKS, Task, mim


@dataclass(frozen=True)
class Trained:
    """An unbroken training run: where it is, what it logged, its checkpoints half-way and at the end."""

    task: Task
    work_dir: Path
    log: list[dict]
    halfway: Path
    final: Path


@pytest.fixture(scope="session")
def train(tmp_path_factory) -> Callable[[Task], Trained]:
    """Train a task; the same run, when it is asked for again."""

    @cache
    def run_of(task: Task) -> Trained:
        work_dir = tmp_path_factory.mktemp(task.package)
        run = mim("train", task, work_dir)
        assert run.status == 0, run.output
        (scalars,) = work_dir.glob("*/vis_data/scalars.json")
        log = [json.loads(line) for line in scalars.read_text().splitlines()]
        return Trained(task, work_dir, log, *sorted(work_dir.glob("epoch_*.pth")))

    return run_of


@pytest.fixture(params=TASKS, ids=lambda task: task.package)
def trained(request, train) -> Trained:
    return train(request.param)
