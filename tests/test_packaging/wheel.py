"""The installed wheel, away from the checkout: ``make test-wheel`` runs this in an environment of its own."""

import json
import math
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from .commands import DEMO, ROOT, check_mim, run

PACKAGE = Path(sysconfig.get_path("purelib"), "mmmsv")
SHORT = ["train_cfg.max_epochs=2", "train_cfg.val_interval=2", "train_dataloader.dataset.indices=4"]
SHORT += ["val_dataloader.dataset.indices=2", "default_hooks.logger.interval=1"]


def test_nothing_comes_from_the_checkout(tmp_path):
    (tmp_path / "show.py").write_text(
        "import sys, mmmsv.kernels, mmmsv.models\nprint(mmmsv.__file__, mmmsv.kernels.__file__, *sys.path, sep='\\n')\n"
    )
    shown = run(tmp_path, "show").splitlines()
    assert shown[:2] == [str(PACKAGE / "__init__.py"), str(PACKAGE / "kernels/__init__.py")]
    assert str(ROOT) not in shown


def test_stand_ins_for_a_script_that_cannot_be_edited(tmp_path):
    line = [sys.executable, "-c", "import selective_scan_cuda; print(selective_scan_cuda.__file__)"]
    environment = {**os.environ, "MMMSV_STAND_IN": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(PACKAGE / "kernels/stand_ins/packages/selective_scan_cuda.py")


def test_mim(tmp_path):
    check_mim(tmp_path, tmp_path / "downloaded")


def test_mim_trains_what_it_downloaded(tmp_path):
    run(tmp_path, "mim", "download", "mmmsv", "--config", DEMO, "--dest", ".")
    run(tmp_path, "mim", "train", "mmdet", f"{DEMO}.py", "--work-dir", "run", "--cfg-options", *SHORT)
    (scalars,) = tmp_path.glob("run/*/vis_data/scalars.json")
    log = [json.loads(line) for line in scalars.read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert (tmp_path / "run/epoch_2.pth").is_file()
