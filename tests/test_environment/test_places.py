"""Where the package may lie, and where it may not."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def failure(place: Path, **environment: str) -> str:
    """Import mmmsv.kernels out of a folder or an archive; return the last line of what that fails with."""
    line = [sys.executable, "-c", "import mmmsv.kernels"]
    environment = {**os.environ, **environment, "PYTHONPATH": str(place)}
    run = subprocess.run(line, env=environment, cwd=place.parent, capture_output=True)
    assert run.returncode == 1
    return run.stderr.decode().splitlines()[-1]


def test_no_archive(tmp_path):
    archive = tmp_path / "mmmsv.whl"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (ROOT / "mmmsv").rglob("*.py"):
            file.write(path, path.relative_to(ROOT))
    assert failure(archive).startswith(f"ImportError: mmmsv does not run out of an archive ({archive})")


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names of files are UTF-8 here, whatever the locale")
def test_no_folder_whose_name_the_locale_cannot_decode(tmp_path):
    place = tmp_path / "größer"
    place.symlink_to(ROOT)
    assert "set PYTHONUTF8=1, or a locale with UTF-8" in failure(place, **C_LOCALE)
