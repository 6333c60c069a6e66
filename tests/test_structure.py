"""Who imports whom: kernels <- models <- checkpoints, analysis <- tools, and never the other way (docs/design.md)."""

import ast
import sys
from pathlib import Path

import pytest

from mmmsv import kernels

ROOT = Path(__file__).parents[1]
OPENMMLAB = {"mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain", "mim"}

# Folder: top-level packages that its files may not import.
ABOVE = {"mmmsv.checkpoints", "mmmsv.analysis", "mmmsv.engine", "tools"}
FORBIDDEN = {
    "mmmsv/compat": {*OPENMMLAB - {"mmengine"}, *ABOVE, "mmmsv.models", "mmmsv.kernels", "mmmsv.registry"},
    "mmmsv/kernels": {
        *OPENMMLAB,
        *ABOVE,
        *(f"mmmsv.{name}" for name in ("models", "registry", "compat.weights_only", "compat.mmengine_checkpoints")),
        "torchvision",
    },
    "mmmsv/models": {*OPENMMLAB - {"mmengine"}, *ABOVE},
    "mmmsv/checkpoints": {*OPENMMLAB - {"mmengine"}, *ABOVE - {"mmmsv.checkpoints"}, "mmmsv.kernels"},
    "mmmsv/analysis": {*OPENMMLAB - {"mmengine"}, *ABOVE - {"mmmsv.analysis"}},
    "mmmsv/engine": {*OPENMMLAB - {"mmengine"}, *ABOVE - {"mmmsv.engine"}, "mmmsv.models", "mmmsv.kernels"},
}


def imported(path: Path, package: str) -> set[str]:
    """Names of all modules that a file of a package imports, at any depth; relative ones under their full name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path, ".".join(path.parent.relative_to(ROOT).parts)):
            broken = [ban for ban in FORBIDDEN[folder] if name == ban or name.startswith(f"{ban}.")]
            assert not broken, f"{path.relative_to(ROOT)} imports {name}"


def test_ops_know_no_backend():
    """Backends import what is above their folder, and register; only the package itself imports them."""
    for path in (ROOT / "mmmsv/kernels").glob("*.py"):
        if path.name != "__init__.py":
            assert not [name for name in imported(path, "mmmsv.kernels") if "kernels.backends" in name], path


def test_the_shelf_of_the_kernels_needs_torch_alone():
    compat = ROOT / "mmmsv/compat"
    assert imported(compat / "__init__.py", "mmmsv.compat") == set()
    modules = imported(compat / "torch_versions.py", "mmmsv.compat")
    assert {module.partition(".")[0] for module in modules} - sys.stdlib_module_names == {"torch"}


def test_models_reach_the_kernels_by_their_public_names():
    names = ("", *kernels.__all__)
    public = {f"mmmsv.kernels.{name}".rstrip(".") for name in names}
    used = {
        n
        for path in (ROOT / "mmmsv/models").glob("*.py")
        for n in imported(path, "mmmsv.models")
        if n.startswith("mmmsv.kernels")
    }
    assert used <= public
    assert used


def test_the_check_sees_imports(tmp_path):
    """A broken rule is found, absolute or relative, at the top or inside a function."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "x.py"
    path.write_text("from ..engine import hooks\ndef f():\n    import mmdet.models\n")
    assert {"mmmsv.engine", "mmmsv.engine.hooks", "mmdet.models"} <= imported(path, "mmmsv.models")
