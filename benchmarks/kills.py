"""Kill a process at random moments of what writes files, and look at what it leaves: whole files, or none.

    python -m benchmarks.kills                                 # 20 kills of each job, about 3 minutes

The jobs: a download, a conversion of the authors' weights and one back, and a training that writes a checkpoint after
each epoch, and goes on after each kill. Each runs again and again in a process of its own until SIGKILL. Unfinished
files have names of their own (``.partial``, ``.mmmsv-unfinished``); all others are to load.
"""

import argparse
import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmmsv.checkpoints.conversion import from_authors_file, save_named_by_hash, to_authors_file
from mmmsv.checkpoints.reading import read_checkpoint
from mmmsv.checkpoints.translation import to_authors
from mmmsv.models import MSVMamba
from mmmsv.whole_files import UNFINISHED

_CONFIG = Path(__file__).parents[1] / "configs/cls/msvmamba_n_clothing_mini.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="of each job (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a fork of a process with threads of OpenMP has none of them
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "authors.pth")
        model = MSVMamba("nano", out_indices=(3,))
        weights = {f"backbone.{name}": weight for name, weight in model.state_dict().items()}
        weights |= {"head.fc.weight": torch.zeros(1000, model.out_channels[0]), "head.fc.bias": torch.zeros(1000)}
        torch.save({"model": to_authors(weights, model.arch, classifier=True)}, source)
        for job, longest in (
            (_download(source), 2.0),
            (_conversion(source), 2.0),
            (_conversion_back(source), 2.0),
            (_training, 8.0),
        ):
            work_dir = Path(folder, job.__name__)
            work_dir.mkdir()
            left = [_killed(partial(job, work_dir), chance.uniform(0, longest), work_dir) for _ in range(args.kills)]
            print(
                f"{job.__name__.strip('_')}: {args.kills} kills; {sum(whole for whole, _ in left)} files found after "
                f"one were whole, none torn; {left[-1][1]} unfinished ones are left, under names of their own",
                flush=True,
            )


def _killed(job: Callable[[], None], seconds: float, work_dir: Path) -> tuple[int, int]:
    """Kill a job after some seconds; return how many files it left that are whole, and that are unfinished.

    Raises:
        RuntimeError: A file is torn, or the job has ended with an error before.
    """
    if (child := os.fork()) == 0:
        try:
            while True:
                job()
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError("the job has failed by itself; its error is above")
    files = [path for path in work_dir.rglob("*") if path.is_file()]
    unfinished = [path for path in files if path.name.endswith((".partial", UNFINISHED))]
    weights = [path for path in files if path.suffix == ".pth"]
    for path in weights:
        torch.load(path, weights_only=False, map_location="cpu")
    for path in work_dir.rglob("last_checkpoint"):
        torch.load(path.read_text(), weights_only=False, map_location="cpu")
    return len(weights), len(unfinished)


def _download(source: Path) -> Callable[[Path], None]:
    handler = partial(_SlowHandler, directory=str(source.parent))
    server = ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def download(work_dir: Path) -> None:
        torch.hub.set_dir(str(work_dir))
        for path in work_dir.rglob("*.pth"):
            path.unlink()
        read_checkpoint(f"http://localhost:{server.server_port}/{source.name}")

    return download


class _SlowHandler(SimpleHTTPRequestHandler):
    def copyfile(self, source: object, outputfile: object) -> None:
        content = source.read()
        with contextlib.suppress(OSError):  # the other side was killed
            for start in range(0, len(content), len(content) // 20):
                outputfile.write(content[start : start + len(content) // 20])
                time.sleep(0.03)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of each request."""


def _conversion(source: Path) -> Callable[[Path], None]:
    def conversion(work_dir: Path) -> None:
        for path in work_dir.glob("*.pth"):
            path.unlink()
        save_named_by_hash(from_authors_file(source)[0], f"{work_dir}/", str(source))

    return conversion


def _conversion_back(source: Path) -> Callable[[Path], None]:
    ours = save_named_by_hash(from_authors_file(source)[0], f"{source.parent}/", str(source))

    def conversion_back(work_dir: Path) -> None:
        for path in work_dir.glob("*.pth"):
            path.unlink()
        save_named_by_hash(to_authors_file(ours)[0], f"{work_dir}/", str(ours))

    return conversion_back


def _training(work_dir: Path) -> None:
    cfg = Config.fromfile(_CONFIG)
    changes = {
        "work_dir": str(work_dir),
        "resume": True,
        "experiment_name": f"{time.time_ns()}",
        "log_level": "ERROR",
        "model.backbone.arch": {"_delete_": True, "embed_dims": (8, 16), "depths": (1, 1)},
        "model.backbone.out_indices": (1,),
        "model.head.in_channels": 16,
        "train_dataloader.dataset.indices": 4,
        "train_dataloader.batch_size": 2,
        "train_cfg.max_epochs": 10**6,
        "param_scheduler": [],
        **dict.fromkeys(
            ("val_cfg", "val_dataloader", "val_evaluator", "test_cfg", "test_dataloader", "test_evaluator")
        ),
        "default_hooks.checkpoint": {
            "_delete_": True,
            "type": "mmmsv.CheckpointHook",
            "interval": 1,
            "max_keep_ckpts": 1,
        },
    }
    cfg.merge_from_dict(changes)
    init_default_scope(cfg.default_scope)
    Runner.from_cfg(cfg).train()


if __name__ == "__main__":
    main()
