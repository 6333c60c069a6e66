"""Commands of mim on mmmsv, in processes of their own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = "msvmamba_n_coco_mini"


def run(place: Path, *words: object) -> str:
    """Run a module of Python's in the folder ``place``; return all that it printed."""
    line = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(line, cwd=place, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def check_mim(place: Path, out: Path) -> None:
    """Search, download and run from ``place``; what is downloaded goes to ``out``."""
    assert f"configs/mask_rcnn/{DEMO}.py" in run(place, "mim", "search", "mmmsv", "--config", DEMO)
    run(place, "mim", "download", "mmmsv", "--config", DEMO, "--dest", out)
    assert "GMACs" in run(place, "mim", "run", "mmmsv", "get_flops", out / f"{DEMO}.py")
