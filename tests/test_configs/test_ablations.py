"""The ablations of MSVMamba-Nano: each of them trains, and is what the table in their README says it is."""

import copy
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from torch import nn

from mmmsv.analysis.flops import count, parameters
from mmmsv.models import MSVMamba
from mmmsv.models.arch import resolve_arch
from tests.test_models.gradients import without_gradient

from .zoo import load

CLS = Path(__file__).parents[2] / "configs/cls"
CONFIGS = sorted((CLS / "ablations").glob("*.py"))
NANO = CLS / "msvmamba_n_300e.py"
SS2D = {"full_routes": ("row", "col", "row_rev", "col_rev"), "half_routes": ()}
NANO_AS_REPORTED = "6.86 / 0.88 / 77.3"


class Row(NamedTuple):
    """A row of the tables in the README."""

    section: str
    config: Path
    name: str
    settings: dict
    parameters: str
    macs: str
    reported: str


def read_rows() -> list[Row]:
    rows, section = [], ""
    for line in (CLS / "ablations/README.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| ["):
            link, name, settings, *figures = (cell.strip(" `") for cell in line.strip("|").split("|"))
            path = re.fullmatch(r"\[.*\]\((.*)\)", link)[1]
            settings = eval(f"dict({settings})", {"SS2D": SS2D})
            rows.append(Row(section, (CLS / "ablations" / path).resolve(), name, settings, *figures))
    return rows


ROWS = read_rows()


@pytest.fixture(scope="module", params=[*CONFIGS, NANO], ids=lambda path: path.stem)
def built(request) -> tuple[Path, Config, nn.Module]:
    cfg = copy.deepcopy(load(request.param))
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.drop_path_rate = 0.0
    torch.manual_seed(0)
    return request.param, cfg, MODELS.build(cfg.model)


def test_the_readme_lists_all_configs():
    assert {row.config for row in ROWS} == {path.resolve() for path in [*CONFIGS, NANO]}
    sections = {row.section for row in ROWS}
    assert sections == {"Components", "Routes", "Scan patterns", "Directions", "Settings", "Stages"}


@pytest.mark.slow
def test_trains(built):
    _, _, model = built
    model.train()
    labels = [DataSample().set_gt_label(label) for label in (3, 600)]
    loss = model(torch.randn(2, 3, 65, 101), labels, mode="loss")["loss"]
    assert loss.isfinite()
    loss.backward()
    assert without_gradient(model.named_parameters()) == []


@pytest.mark.slow
def test_settings_are_those_of_the_readme(built):
    path, _, model = built
    rows = [row for row in ROWS if row.config == path.resolve()]
    for row in rows:
        assert model.backbone.arch == resolve_arch({"base": "nano", **row.settings}, MSVMamba.archs, "MSVMamba")


@pytest.mark.slow
def test_figures_are_those_of_the_readme(built):
    path, _, model = built
    macs = count(model.eval(), (224, 224))
    for row in (row for row in ROWS if row.config == path.resolve()):
        assert row.parameters == f"{parameters(model) / 1e6:.3f}"
        assert row.macs == f"{macs.total / 1e9:.3f}"


def test_reported_figures():
    """Nano's alone were to hand; where the paper has a row there is a question mark, and none where it has not."""
    for row in ROWS:
        if row.config == NANO.resolve():
            assert row.reported == NANO_AS_REPORTED
        else:
            published = "not copied here" in row.config.read_text()
            assert row.reported == ("?" if published else "none")


@pytest.mark.slow
def test_only_the_arch_differs_from_nano(built):
    cfg, nano = copy.deepcopy(built[1]), copy.deepcopy(load(NANO))
    assert all(cfg[key] == nano[key] for key in nano if key != "model")
    for one in (cfg, nano):
        one.model.backbone.update(type=None, arch=None, drop_path_rate=None)
    assert cfg.model == nano.model


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_head_of_the_file(path):
    """The first comment names the rows, the second says where their figures are."""
    source = path.read_text()
    title, origin, base, *settings = source.splitlines()
    assert len(settings) <= 7
    sections = set()
    for row in (row for row in ROWS if row.config == path.resolve()):
        sections.add(row.section)
        assert f"{row.section}: {row.name}." in title
    if "Components" in sections:
        assert origin == "# top-1: see Table 4 of the paper (not copied here)"
    elif "Routes" in sections:
        assert origin == "# top-1: see Table 5 of the paper (not copied here)"
    elif "Scan patterns" in sections:
        assert origin == "# top-1: see the authors' slides (not copied here)"
    else:
        assert origin == "# Not a published row."
    assert base == "_base_ = '../msvmamba_n_300e.py'"
    assert not re.findall(r"""['"](/|~|[A-Za-z]:\\)""", source)


def _changed(section: str) -> list[set[str]]:
    """For each two neighbouring rows of a section: the settings in which their blocks differ."""
    blocks = [
        resolve_arch({"base": "nano", **row.settings}, MSVMamba.archs, "MSVMamba").blocks[0]
        for row in ROWS
        if row.section == section
    ]
    return [
        {name for name in vars(one) if getattr(one, name) != getattr(other, name)} for one, other in pairwise(blocks)
    ]


def test_components_come_one_by_one():
    assert _changed("Components") == [{"full_routes", "half_routes"}, {"se"}, {"ffn"}, {"state_size"}]


def test_routes_are_split_between_the_maps():
    for row in (row for row in ROWS if row.section in ("Routes", "Directions")):
        block = resolve_arch({"base": "nano", **row.settings}, MSVMamba.archs, "MSVMamba").blocks[0]
        assert sorted(block.full_routes + block.half_routes) == ["col", "col_rev", "row", "row_rev"]
        if row.section == "Routes":
            assert row.name == f"(F, H) = ({len(block.full_routes)}, {len(block.half_routes)})"
        else:
            assert row.name == f"{' and '.join(block.full_routes)} on the full map"
