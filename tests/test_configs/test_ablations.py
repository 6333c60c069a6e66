"""The ablations of MSVMamba-Nano: each of them trains, and is what the README says it is."""

import copy
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from torch import nn

from mmmsv.models import MSVMamba
from mmmsv.models.arch import Arch, resolve_arch
from tests.test_models.gradients import without_gradient

from .zoo import ROOT, load

FOLDER = ROOT / "configs/cls/ablations"
CONFIGS = sorted(FOLDER.glob("*.py"))
NANO = FOLDER / "msvmamba_n_100e.py"
ENTRIES = {entry["Name"]: entry for entry in yaml.safe_load((FOLDER / "metafile.yml").read_text())["Models"]}
PUBLISHED = {name: entry for name, entry in ENTRIES.items() if "Published" in entry}
# What each table of the README is called in the comments of the configs.
TITLES = {"components": "Components", "routes": "Routes", "scan-patterns": "Scan patterns"}


class Row(NamedTuple):
    """A row of a table in the README: the table, and the cells by their headings."""

    table: str
    cells: dict[str, str]

    @property
    def name(self) -> str:
        return re.fullmatch(r"\[(.*)\]\(\1\.py\)", self.cells["config"])[1]

    @property
    def arch(self) -> Arch:
        settings = eval(f"dict({self.cells['settings'].strip('`')})")
        return resolve_arch({"base": "nano", **settings}, MSVMamba.archs, "MSVMamba")


def read_rows() -> list[Row]:
    rows, table, headings = [], "", []
    for line in (FOLDER / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if begin := re.match(r"<!-- begin ([\w-]+), ", line):
            table = begin[1]
        elif cells[0] == "config":
            headings = cells
        elif cells[0].startswith("["):
            rows.append(Row(table, dict(zip(headings, cells, strict=True))))
    return rows


ROWS = read_rows()


def arch_of(name: str) -> Arch:
    return resolve_arch(load(FOLDER / f"{name}.py").model.backbone.arch, MSVMamba.archs, "MSVMamba")


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: path.stem)
def built(request) -> tuple[Path, Config, nn.Module]:
    cfg = copy.deepcopy(load(request.param))
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.drop_path_rate = 0.0
    torch.manual_seed(0)
    return request.param, cfg, MODELS.build(cfg.model)


def test_all_configs_are_listed():
    assert sorted(ROOT / entry["Config"] for entry in ENTRIES.values()) == CONFIGS
    assert all(name == Path(entry["Config"]).stem for name, entry in ENTRIES.items())
    assert [(row.table, row.name, row.cells["model"]) for row in ROWS] == [
        (table, name, entry["Rows"][table])
        for table in [*TITLES, "not-published"]
        for name, entry in ENTRIES.items()
        if table in entry["Rows"]
    ]


def test_names_are_those_of_no_other_config():
    assert not ENTRIES.keys() & {path.stem for path in (ROOT / "configs").glob("*/*.py")}


@pytest.mark.slow
def test_trains(built):
    _, _, model = built
    model.train()
    labels = [DataSample().set_gt_label(label) for label in (3, 600)]
    loss = model(torch.randn(2, 3, 65, 101), labels, mode="loss")["loss"]
    assert loss.isfinite()
    loss.backward()
    assert without_gradient(model.named_parameters()) == []


def test_one_reading_is_uncertain():
    noted = {name for name, entry in PUBLISHED.items() if any("Note" in result for result in entry["Results"])}
    assert noted == {"msvmamba_n_components_ms2d_se_ffn"}


def test_nano_differs_from_300_epochs_in_their_number_alone():
    cfg, nano = load(NANO), load(FOLDER / "../msvmamba_n_300e.py")
    assert cfg.train_cfg == {**nano.train_cfg, "max_epochs": 100}
    assert all(cfg[key] == nano[key] for key in nano if key != "train_cfg")
    # The schedule ends with the training, whose length MMEngine takes for what is not given.
    *_, cosine = cfg.param_scheduler
    assert cosine["type"] == "CosineAnnealingLR"
    assert not {"end", "T_max"} & cosine.keys()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_only_the_arch_differs_from_nano(path):
    cfg, nano = copy.deepcopy(load(path)), copy.deepcopy(load(NANO))
    assert all(cfg[key] == nano[key] for key in nano if key != "model")
    for one in (cfg, nano):
        one.model.backbone.arch = None
    assert cfg.model == nano.model


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_head_of_the_file(path):
    """Comments name the rows, and where their figures are."""
    title, second, *_ = path.read_text().splitlines()
    entry = ENTRIES[path.stem]
    if "Published" not in entry:
        assert title.startswith(f"# Not published: {entry['Rows']['not-published']}.")
    else:
        assert title.startswith("# " + " ".join(f"{TITLES[t]}: {r}." for t, r in entry["Rows"].items() if t in TITLES))
        assert second == f"# Figures: {'; '.join(figure['Source'] for figure in entry['Published'])}."


def _archs(table: str) -> list[Arch]:
    return [row.arch for row in ROWS if row.table == table]


def test_components_come_one_by_one():
    archs = _archs("components")
    changed = [
        {name for name in vars(one) if getattr(one, name) != getattr(other, name)}
        for one, other in pairwise(arch.blocks[0] for arch in archs)
    ]
    assert changed == [{"full_routes", "half_routes"}, {"se"}, {"ffn"}, {"state_size"}]
    assert [arch.depths for arch in archs] == [(1, 2, 4, 2), (2, 2, 6, 2), (2, 2, 6, 2), (1, 2, 4, 2), (1, 2, 5, 2)]


def test_routes_are_split_between_the_maps():
    rows = [row for row in ROWS if row.table == "routes"]
    for row, full in zip(rows, range(5), strict=True):
        block = row.arch.blocks[0]
        assert sorted(block.full_routes + block.half_routes) == ["col", "col_rev", "row", "row_rev"]
        assert row.cells["model"] == f"(F, H) = ({full}, {4 - full})"
        assert (len(block.full_routes), block.half_kernel) == (full, 7 if full else 3)


def test_scan_patterns_have_four_scans():
    *ss2d, ms2d = (arch.blocks[0] for arch in _archs("scan-patterns"))
    assert [(len(block.full_routes), len(set(block.full_routes))) for block in ss2d] == [(4, 1), (4, 2), (4, 4)]
    assert all(not block.half_routes for block in ss2d)
    assert (len(ms2d.full_routes), len(ms2d.half_routes)) == (1, 3)
