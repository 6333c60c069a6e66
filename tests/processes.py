"""Processes of their own that need not import torch and MMEngine again, which takes half of the time of a short one."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

# It imports these once, and nothing of this package; each process is a fork of it.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torchvision", "mmengine.runner", "matplotlib.pyplot"])


@dataclass(frozen=True)
class Run:
    """A finished command: its exit status and all that it wrote."""

    status: int
    output: str

    @property
    def error(self) -> str:
        """The last line of the traceback of a script."""
        return self.output.rstrip().rpartition("\n")[2]


def run_script(line: Sequence[object], environment: Mapping[str, str] | None = None) -> Run:
    """Run a Python script with its arguments, with some environment variables more."""
    return _run(_execute_script, [str(part) for part in line], dict(environment or {}))


def run_code(code: str) -> Run:
    """Run some Python code."""
    return _run(exec, code, {"__name__": "__main__"})


def _run(function, *arguments) -> Run:
    with TemporaryDirectory() as folder:
        output = Path(folder, "output.txt")
        process = SERVER.Process(target=_execute, args=(output, function, *arguments))
        process.start()
        process.join()
        return Run(process.exitcode, output.read_text(errors="replace"))


def _execute(output: Path, function, *arguments) -> None:
    with output.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    function(*arguments)


def _execute_script(line: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.argv = line
    folders = environment.get("PYTHONPATH", "")
    sys.path[:0] = [str(Path(line[0]).parent), *filter(None, folders.split(os.pathsep))]
    runpy.run_path(line[0], run_name="__main__")
