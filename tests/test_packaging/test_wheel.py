"""What goes into a wheel, and mim in a checkout. ``make test-wheel`` builds the wheel and uses it (wheel.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.fileio import load

from tests.test_end_to_end.runs import IN_FORK

from .commands import DEMO, ROOT, check_mim


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The folder ``mmmsv`` of a wheel, but for the compiled libraries."""
    out = str(tmp_path_factory.mktemp("wheel"))
    line = [sys.executable, "setup.py", "egg_info", "--egg-base", out, "build_py", "--build-lib", out]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    return Path(out, "mmmsv")


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_wheel_holds_the_sources_that_its_library_is_checked_against(package):
    sources = "mmmsv/kernels/backends/cpu/csrc"
    assert files(package.parent / sources) == files(ROOT / sources) != {}


@pytest.mark.parametrize("folder", ["configs", "tools", "data/coco_mini", "data/clothing_mini"])
def test_wheel_holds_what_mim_looks_for(package, folder):
    assert files(package / ".mim" / folder) == files(ROOT / folder) != {}


def test_wheel_holds_the_configs_of_the_model_index(package):
    index = package / ".mim/model-index.yml"
    for metafile in load(index)["Import"]:
        for model in load(index.parent / metafile)["Models"]:
            assert (index.parent / model["Config"]).is_file()


def test_wheel_holds_the_data_of_the_bundled_configs(package):
    cfg = Config.fromfile(package / f".mim/configs/mask_rcnn/{DEMO}.py")
    data = Path(cfg.data_root).resolve()
    assert data.is_relative_to(package)
    assert (data / cfg.train_dataloader.dataset.ann_file).is_file()


@pytest.mark.parametrize(("value", "found"), [("", False), ("0", False), ("1", True), ("yes", False)])
def test_stand_ins_are_found_where_the_environment_asks(package, value, found):
    """At the start of Python, which imports neither torch nor this package, and says what a bad value is."""
    script = (
        "import site, sys\n"
        "site.addsitedir(sys.argv[1])\n"
        "from importlib.util import find_spec\n"
        "print(find_spec('mamba_ssm') is not None, find_spec('selective_scan') is not None)\n"
        "print({'torch', 'mmmsv'} & set(sys.modules))\n"
    )
    line = [sys.executable, "-I", "-S", "-c", script, package.parent]
    done = subprocess.run(line, env={**os.environ, "MMMSV_STAND_IN": value}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{found} False", "set()"]
    said = "environment variable MMMSV_STAND_IN is 'yes'; set it to 1, or to 0 for no stand-ins" in done.stderr
    assert said == (value == "yes")


def test_wheel_holds_all_modules_and_says_that_they_are_typed(package):
    kernels = {f"kernels/{name}": content for name, content in files(ROOT / "kernels").items()}
    modules = {name: content for name, content in {**files(ROOT / "mmmsv"), **kernels}.items() if name.endswith(".py")}
    assert {**modules, "py.typed": b""}.items() <= files(package).items()


@pytest.mark.parametrize("text", ["_base_ = {}", "_base_ = [{}, './other.py']"], ids=["alone", "beside another"])
def test_config_is_inherited_by_the_package(tmp_path, text):
    base = f"__import__('mmmsv').__path__[0] + '/.mim/configs/mask_rcnn/{DEMO}.py'"
    (tmp_path / "other.py").write_text("other = 1")
    (tmp_path / "config.py").write_text(text.format(base) + "\nmodel = dict(neck=dict(num_outs=4))")
    cfg = Config.fromfile(tmp_path / "config.py")
    assert (cfg.model.backbone.type, cfg.model.neck.num_outs) == ("mmmsv.MSVMamba", 4)
    assert Path(cfg.data_root, cfg.train_dataloader.dataset.ann_file).is_file()


@pytest.mark.slow
def test_mim_finds_an_editable_installation(tmp_path):
    """openmim does where it is called from the checkout, the fork's mim from anywhere else."""
    check_mim(tmp_path if IN_FORK else ROOT, tmp_path)
