"""Commands as users type them, in processes of their own, on small models."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# One thread: these models are far too small for two, and threads that wait for each other on a busy machine crawl.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Task:
    """One of the three libraries.

    Args:
        package: Its name for mim; also the name of its config in ``small/``.
        metrics: What its evaluation must report.
        classes: Where its configs say how many classes there are.
    """

    package: str
    metrics: tuple[str, ...]
    classes: str

    @property
    def config(self) -> Path:
        return Path(__file__).parent / "small" / f"{self.package}.py"


TASKS = [
    Task("mmdet", ("coco/bbox_mAP", "coco/segm_mAP", "coco/AR@100"), "model.roi_head.bbox_head.num_classes"),
    Task("mmseg", ("mIoU", "mAcc", "aAcc"), "model.decode_head.num_classes"),
    Task("mmpretrain", ("accuracy/top1", "accuracy/top5"), "model.head.num_classes"),
]


@dataclass(frozen=True)
class Run:
    """A finished command: its exit status and all that it wrote."""

    status: int
    output: str


def mim(command: str, task: Task, work_dir: Path, *arguments: object) -> Run:
    """Run ``mim train`` or ``mim test`` on the small config of ``task``."""
    program = Path(sys.executable).with_name("mim")
    line = [program, command, task.package, task.config, "--work-dir", work_dir, *arguments]
    run = subprocess.run([str(part) for part in line], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    return Run(run.returncode, run.stdout + run.stderr)
