"""What the documentation says to type works, and what it points to is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from .pages import PAGES, ROOT, Block, blocks

SMALL = ROOT / "tests/test_end_to_end/small/mmdet.py"
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
}
# A path in the repository, as a command or a sentence names it; those of data sets and of what a run writes may not
# be there.
FILE = re.compile(r"(?<![\w/.:{-])(?:configs|tools|benchmarks|docs|packaging|tests|mmmsv|kernels)/[\w./-]*\w")
LINK = re.compile(r"(?<!!)\[[^]\[]+\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def runnable(page: Path, language: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == language and block.why_not is None]


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A folder that looks like the checkout; what is written into it stays out of the repository."""
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name != "work_dirs":
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page, "bash")], ids=str)
def test_commands_run(page, checkout):
    for block in runnable(page, "bash"):
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code], env=ENVIRONMENT, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{page}:{block.line}\n{run.stdout}{run.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page, "python")], ids=str)
def test_python_runs(page, checkout):
    for block in runnable(page, "python"):
        path = checkout / f"{page.stem}_{block.line}.py"
        if "_base_" in block.code:
            path.write_text(block.code)
            cfg = Config.fromfile(path)
            init_default_scope(cfg.default_scope)
            model = MODELS.build(cfg.model)
            assert type(model.backbone).__module__.startswith("mmmsv.")
            continue
        names = {}
        exec(compile(block.code, f"{page}:{block.line}", "exec"), names)
        if names.keys() & {"optim_wrapper", "custom_hooks", "default_hooks", "train_cfg"}:
            # Lines for a config: with them it has to be one that can be trained.
            path.write_text(f"_base_ = {str(SMALL)!r}\n{block.code}")
            cfg = Config.fromfile(path)
            cfg.work_dir = str(checkout / "work_dirs")
            init_default_scope(cfg.default_scope)
            runner = Runner.from_cfg(cfg)
            runner.build_optim_wrapper(cfg.optim_wrapper)
            runner.build_train_loop(cfg.train_cfg)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_it_names_is_there(page):
    text = (ROOT / page).read_text()
    assert [name for name in FILE.findall(text) if not (ROOT / name).exists()] == []
    for target, anchor in LINK.findall(text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_is_run_or_says_why_not(page):
    """A fence that the pattern does not see, or a language that nothing runs, would pass for tested."""
    found = blocks(page)
    assert 2 * len(found) == len(re.findall(r"^ *```", (ROOT / page).read_text(), re.MULTILINE))
    assert {block.language for block in found} <= {"bash", "python", "text", "yaml"}
    reasons = re.findall(r"^ *<!-- not run", (ROOT / page).read_text(), re.MULTILINE)
    assert len(reasons) == sum(block.why_not is not None for block in found)


def test_blocks_and_names_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title: with `code`\n<!-- not run: no data -->\n```bash\nfalse\n```\ntext\n```python\n1 / 0\n```\n"
    )
    first, second = blocks(page)
    assert (first.line, first.language, first.code, first.why_not) == (2, "bash", "false\n", "no data")
    assert (second.line, second.language, second.code, second.why_not) == (7, "python", "1 / 0\n", None)
    assert anchors(page) == {"a-title-with-code"}
    assert FILE.findall("see tools/no.py, data/x and http://a/configs/b") == ["tools/no.py"]
