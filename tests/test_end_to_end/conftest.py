import json
from dataclasses import dataclass
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


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task.package)
def trained(request, tmp_path_factory) -> Trained:
    work_dir = tmp_path_factory.mktemp(request.param.package)
    run = mim("train", request.param, work_dir)
    assert run.status == 0, run.output
    (scalars,) = work_dir.glob("*/vis_data/scalars.json")
    log = [json.loads(line) for line in scalars.read_text().splitlines()]
    return Trained(request.param, work_dir, log, *sorted(work_dir.glob("epoch_*.pth")))
