"""What is locked: versions and hashes of all that an environment is made of, and that nothing else is installed."""

import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mmmsv

ROOT = Path(__file__).parents[2]
LOCKED = ROOT / "packaging/locked"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def requirements(path: Path) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def locked(name: str) -> dict[Requirement, list[str]]:
    """Read a locked file: the hashes of each requirement; anything else in it is an error."""
    lines = (LOCKED / f"{name}.txt").read_text().replace("\\\n", "").splitlines()
    fields = (line.split(" --hash=sha256:") for line in lines if not line.lstrip().startswith("#"))
    return {Requirement(field[0]): [digest.strip() for digest in field[1:]] for field in fields}


def applying(requirements, python: str) -> dict[str, Requirement]:
    """Return what applies to Linux and a version of Python, by name."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    found = [one for one in requirements if one.marker is None or one.marker.evaluate(environment)]
    named = {canonicalize_name(one.name): one for one in found}
    assert len(named) == len(found), "two entries for one package"
    return named


def version(requirement: Requirement) -> str:
    (only,) = requirement.specifier
    assert only.operator == "=="
    return only.version


@pytest.mark.parametrize("name", ["environment", "release"])
def test_every_package_has_one_version_and_hashes(name):
    entries = locked(name)
    assert len(entries) > 50
    assert all(hashes and all(len(digest) == 64 for digest in hashes) for hashes in entries.values())
    for python in PYTHONS:
        assert all(map(version, applying(entries, python).values()))


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["environment", "release"])
def test_versions_are_those_of_the_constraints(name, python):
    entries = applying(locked(name), python)
    constraints = applying(requirements(ROOT / "constraints.txt"), python)
    common = entries.keys() & constraints.keys()
    assert "setuptools" in common
    assert [one for one in common if version(entries[one]) not in constraints[one].specifier] == []


@pytest.mark.parametrize("name", ["environment", "release"])
def test_what_is_asked_for_is_locked(name):
    """After a change of the extras, or of the .in files: make lock."""
    asked = requirements(LOCKED / f"{name}.in")
    if name == "environment":
        extras = [{"extra": extra} for extra in ("mm", "det", "seg", "cls", "dev")]
        of_mmmsv = map(Requirement, importlib.metadata.requires("mmmsv"))
        asked += [one for one in of_mmmsv if one.marker is None or any(map(one.marker.evaluate, extras))]
    entries = applying(locked(name), "3.12")
    for one in asked:
        if one.name != "mmmsv":  # an extra that asks for another
            assert version(entries[canonicalize_name(one.name)]) in one.specifier


def test_opencv_needs_nothing_of_the_system():
    assert [entry.name for entry in locked("environment") if "opencv" in entry.name] == ["opencv-python-headless"]


@pytest.fixture
def make(tmp_path):
    """Return what a make target would run, in an environment that is not there yet."""
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    # What the make that runs the tests was given is not meant for this one.
    given = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "LOCKED", "MMCV"}
    environment = {name: value for name, value in os.environ.items() if name not in given}

    def run(*words):
        line = ["make", "-n", f"VENV={tmp_path}/venv", *words]
        return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


def test_a_locked_environment_has_nothing_without_a_hash(make):
    """What is installed is locked, or lies here and is built with what is locked."""
    installed = [line for line in make("setup", "LOCKED=1").stdout.splitlines() if "-m pip" in line]
    assert len(installed) == 3
    for line in installed:
        assert "--no-deps" in line
        assert "--require-hashes --no-deps --only-binary :all:" in line or "--no-build-isolation" in line
    assert not any("--require-hashes" in line for line in make("setup").stdout.splitlines())


@pytest.mark.parametrize("other", ["MMCV=compiled", "CONSTRAINTS=constraints-fork.txt"])
def test_no_other_environment_is_locked(make, other):
    done = make("setup", "LOCKED=1", other)
    assert done.returncode != 0
    assert "LOCKED=1 goes with mmcv-lite and constraints.txt only" in done.stderr


def test_a_release_names_its_version(make):
    assert f"-o dist/mmmsv-{mmmsv.__version__}.cdx.json" in make("release").stdout
