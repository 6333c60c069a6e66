"""Make the pictures and tables of docs/gallery.md: train the networks that it shows, and run the commands that it has.

    python -m benchmarks.gallery    # or make gallery

The commands of the page are run as they stand there, in their order; what they write goes to work_dirs/gallery, and
the pictures that the page shows are copied to docs/images/gallery. Training resumes where it was cut off, and is not
repeated; remove work_dirs/gallery to train again.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mmmsv.analysis.networks import load_network

from .claim import as_markdown, measure
from .page import PAGE, PICTURES, ROOT, commands, pictures, with_tables

WORK = ROOT / "work_dirs/gallery"
# What the claim of the paper is measured with.
COMPARED = {
    "SS2D": ("configs/cls/msvmamba_n_ss2d_clothing_mini.py", "ss2d/epoch_60.pth"),
    "MS2D": ("configs/cls/msvmamba_n_clothing_mini.py", "ms2d/epoch_60.pth"),
}


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gallery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands():
        print(f"$ {command}", flush=True)
        if subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, env=environment).returncode:
            parser.exit(1, f"this command of {PAGE.relative_to(ROOT)} failed: {command}\n")
    networks = {
        name: load_network(str(ROOT / config), str(WORK / weights)) for name, (config, weights) in COMPARED.items()
    }
    print("measuring what the paper claims", flush=True)
    claim = as_markdown(measure(networks, ROOT / "data/clothing_mini/val"))
    PAGE.write_text(with_tables({"claim": claim}))
    for name in pictures():
        (PICTURES / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(WORK / name, PICTURES / name)
    print(f"wrote {PAGE.relative_to(ROOT)} and {len(pictures())} pictures")


if __name__ == "__main__":
    main()
