"""Commands as users type them, in processes of their own, on small models."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from tests.processes import Run, run_script

FOLDER = Path(__file__).parent
IN_FORK = any(metadata.distributions(name="onedl-mmdetection"))
ENVIRONMENT = {
    **os.environ,
    # These models are far too small for two threads, and threads that wait for each other on a busy machine crawl.
    "OMP_NUM_THREADS": "1",
    # What custom_imports of the configs here asks for.
    "PYTHONPATH": str(FOLDER / "instruments"),
    # A checkpoint that torch refuses the fork reads again without a restriction: none here may need that.
    **({"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"} if IN_FORK else {}),
}


@dataclass(frozen=True)
class Task:
    """One of the three libraries.

    Args:
        package: The name of its module, and of its config in ``small/``.
        metrics: What its evaluation must report.
        classes: Where its configs say how many classes there are.
    """

    package: str
    metrics: tuple[str, ...]
    classes: str

    @property
    def config(self) -> Path:
        return FOLDER / "small" / f"{self.package}.py"

    @property
    def name(self) -> str:
        """Its name for mim; in the maintained fork of OpenMMLab mmdet has that of its repository."""
        return "mmdetection" if IN_FORK and self.package == "mmdet" else self.package


TASKS = [
    Task("mmdet", ("coco/bbox_mAP", "coco/segm_mAP", "coco/AR@100"), "model.roi_head.bbox_head.num_classes"),
    Task("mmseg", ("mIoU", "mAcc", "aAcc"), "model.decode_head.num_classes"),
    Task("mmpretrain", ("accuracy/top1", "accuracy/top5"), "model.head.num_classes"),
]


MMDET, MMSEG, MMPRETRAIN = TASKS


def mim(
    command: str,
    task: Task,
    work_dir: Path,
    *arguments: object,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Run ``mim train`` or ``mim test`` on a config, if none is given on the small one of ``task``."""
    program = Path(sys.executable).with_name("mim")
    line = [program, command, task.name, config or task.config, *arguments, "--work-dir", work_dir]
    return _run(*line, environment=environment)


def script(command: str, task: Task, work_dir: Path, *arguments: object, config: Path | None = None) -> Run:
    """Run what ``mim train`` or ``mim test`` starts, in a process that has imported torch and MMEngine already."""
    program = Path(find_spec(task.package).origin).parent / ".mim/tools" / f"{command}.py"
    return run_script([program, config or task.config, *arguments, "--work-dir", work_dir], ENVIRONMENT)


def _run(*line: object, environment: Mapping[str, str] | None = None) -> Run:
    environment = {**ENVIRONMENT, **(environment or {})}
    run = subprocess.run([str(part) for part in line], env=environment, capture_output=True, text=True)
    return Run(run.returncode, run.stdout + run.stderr)
