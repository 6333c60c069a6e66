"""The metafiles have what is counted and what the READMEs show, and the authors' files; mim reads them."""

import copy
import re
from collections import Counter

import pytest
import yaml
from mim.commands.search import convert2df
from modelindex.load_model_index import load as load_model_index

from benchmarks.zoo import metafiles, pages
from benchmarks.zoo.tables import Comparison, comparisons
from tests.test_docs.pages import PAGES, blocks

from .zoo import CONFIGS, ROOT, build, load

MODELS = [model for metafile in metafiles.metafiles() for model in metafiles.read(metafile)]
ENTRIES = {
    entry["Name"]: entry for path in metafiles.metafiles() for entry in yaml.safe_load(path.read_text())["Models"]
}
# Two libraries have a config of the first name; of the second the authors released two files.
RENAMED = {"upernet_msvmamba_n_coco_mini": "msvmamba_n_coco_mini", "vmamba_b_1x_bs8": "vmamba_b_1x"}
# The two figures that are not met: what is published and what is counted; docs/design.md, "Counting".
UNMET = {"msvmamba_t_1x": ("252G", "265"), "msvmamba_n_components_ms2d_se_ffn": ("0.94G", "0.93")}


def test_all_configs_are_listed():
    ablations = (ROOT / "configs/cls/ablations").glob("*.py")
    assert {model.config for model in MODELS} == {*CONFIGS, *ablations}
    assert sorted(ROOT.glob("configs/**/metafile.yml")) == sorted(metafiles.metafiles())
    assert len({model.name for model in MODELS}) == len(MODELS)
    for model in MODELS:
        assert RENAMED.get(model.name, model.name) == model.config.stem


@pytest.mark.slow
def test_metafiles_and_tables_are_up_to_date():
    """All parameters, MACs and tables; if this fails, run ``make zoo`` and look at what it changed."""
    assert list(pages.differences()) == []
    unmet = {
        names[0]: (comparison.published, comparison.rounded())
        for (_, _, *pair), names in comparisons(MODELS).items()
        for comparison in pair
        if comparison and not comparison.is_met
    }
    assert unmet == UNMET


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_schedule_is_that_of_the_config(model):
    metadata, cfg = ENTRIES[model.name]["Metadata"], load(model.config)
    assert metadata.get("Epochs") == cfg.train_cfg.get("max_epochs")
    assert metadata.get("Iterations") == cfg.train_cfg.get("max_iters")
    batch_size = cfg.get("auto_scale_lr", {}).get("base_batch_size", cfg.train_dataloader.batch_size)
    assert metadata.get("Batch Size") == (None if model.name == "vmamba_b_1x_bs8" else batch_size)


def test_results_are_the_authors():
    """Each with the document that it is from; of two figures, that of the authors' file is the one that mim shows."""
    for entry in ENTRIES.values():
        results = entry.get("Results", [])
        assert all(result["Reported By"] == "authors" and result["Source"] for result in results)
        last = {metric: result for result in results for metric in result["Metrics"]}
        for result in results:
            assert all(last[metric] is result for metric in result["Metrics"]) or "Note" in result


def test_authors_files():
    """41 files, each in one model, or in two that differ in how they are tested; mim fetches what has a direct link."""
    addresses = Counter()
    for model in MODELS:
        weights = ENTRIES[model.name]["Weights"]
        if model.file:
            assert weights == model.file
            assert re.fullmatch(
                r"https://(github\.com/MzeroMiko/VMamba/releases/download/%23v[02](cls|det|seg)"
                r"|huggingface\.co/YuhengSSS/MSVMamba/resolve/main)/\w[\w-]*\.pth",
                weights,
            )
        elif model.folder:
            assert weights == f"no direct link: fetch it by hand from {model.folder}/"
            assert model.folder.startswith("https://drive.google.com/drive/folders/")
        else:
            assert weights == "none yet/"
        # It cuts at commas, and names the file after what comes behind the last slash: with nothing, it fetches none.
        assert "," not in weights
        assert model.file or weights.endswith("/")
        if model.file or model.folder:
            addresses[model.file or model.folder, model.name.removesuffix("_ms")] += 1
    assert len(addresses) == len({address for address, _ in addresses}) == 41
    assert {name for (_, name), models in addresses.items() if models == 2} == {
        name for _, name in addresses if name.endswith("_160k")
    }


def test_mim_reads_them():
    table = convert2df(load_model_index(str(ROOT / "model-index.yml")))
    assert sorted(table.index) == sorted(ENTRIES)
    # By these mim filters and downloads.
    assert all(table[field].notna().all() for field in ("training_data", "config", "weight"))
    assert table["coco/box_ap"]["vmamba_v1_b_1x"] == 48.6
    assert table["imagenet-1k/top_1_accuracy"]["msvmamba_v3_b_300e"] == 84.4
    assert table["ade20k/miou"]["msvmamba_t_160k"] == 47.8


def test_published_numbers_are_met_by_rounding():
    assert Comparison("4.6G", 4_649_000_000).is_met
    assert not Comparison("4.60G", 4_649_000_000).is_met
    assert Comparison("0.94G", 934_410_000).cells == ("0.9344", "0.94", "**not met**")


@pytest.fixture
def small_zoo(tmp_path, monkeypatch):
    """One model with a page; what is counted are two small numbers."""
    for module in (metafiles, pages):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(metafiles.Model, "cost", lambda *_: metafiles.Cost(123, 45, 6789))
    monkeypatch.setattr("benchmarks.zoo.tables.load", lambda _: load(CONFIGS[0]))
    folder = tmp_path / "configs/cls"
    folder.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/zoo.md").write_text("")
    (tmp_path / "model-index.yml").write_text("Import: [configs/cls/metafile.yml]\n")
    (folder / "a.py").write_text("")
    (folder / "metafile.yml").write_text(
        "# A comment.\nModels:\n  - Name: a  # another\n    Config: configs/cls/a.py\n    Metadata:\n"
        "      Parameters: 0\n      FLOPs: 0\n    Rows: {300e: A}\n"
    )
    (folder / "README.md").write_text("Before\n<!-- begin 300e, written by make zoo -->\n<!-- end 300e -->\nAfter\n")
    yield folder
    metafiles.read.cache_clear()


def test_what_the_command_writes(small_zoo):
    """Two numbers and the table are replaced, all else is kept; a second time nothing differs."""
    before = (small_zoo / "metafile.yml").read_text()
    (first, second) = pages.differences()
    assert first == (
        "configs/cls/metafile.yml, line 6, is '      Parameters: 0', expected '      Parameters: 123': run `make zoo`"
    )
    assert second.startswith("configs/cls/README.md, line 3, is '<!-- end 300e -->', expected '': run `make zoo`")
    for path, text in pages.texts().items():
        path.write_text(text)
    assert (small_zoo / "metafile.yml").read_text() == before.replace("meters: 0", "meters: 123").replace(
        "FLOPs: 0", "FLOPs: 6789"
    )
    assert "| [a](a.py) | A | 0.00 | 6.79e-06 |\n\n<!-- end 300e -->\nAfter" in (small_zoo / "README.md").read_text()
    assert list(pages.differences()) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("README.md", "300e", "384e", "model a stands in the table 300e, which no page has; put '<!-- begin 300e,"),
        ("metafile.yml", "    Rows: {300e: A}\n", "", "model a is in no table; give it Rows, such as {300e:"),
        ("metafile.yml", "FLOPs: 0", "Flops: 0", "model a has 0 lines 'FLOPs: NUMBER' in its Metadata, expected one"),
        ("metafile.yml", "cls/a.py", "cls/b.py", "model a has the config configs/cls/b.py, which is not there; write"),
        (
            "metafile.yml",
            "    Rows",
            "    Published: [{GFLOPs: 1, Source: x}]\n    Rows",
            "model a has published figures {'GFLOPs': 1, 'Source': 'x'}, expected Source, Parameters such as 33M,",
        ),
    ],
    ids=["no page", "no table", "no number", "no config", "unknown key"],
)
def test_errors_of_the_command(small_zoo, file, old, new, message):
    path = small_zoo / file
    if file == "README.md":
        path.write_text("")
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=re.escape(message)):
        pages.texts()


def test_table_that_no_model_stands_in(small_zoo):
    page = small_zoo / "README.md"
    page.write_text(page.read_text().replace("300e", "30e"))
    with pytest.raises(ValueError, match="has comments for the table 30e, in which no model of the metafiles stands"):
        pages.texts()


def read_commands() -> list[str]:
    code = "".join(block.code for page in PAGES for block in blocks(page) if block.language == "bash")
    lines = (" ".join(line.partition("#")[0].split()) for line in code.replace("\\\n", " ").splitlines())
    libraries = ("mmdet", "mmseg", "mmpretrain")
    return sorted({line for line in lines if re.match(rf"mim (train|test) ({'|'.join(libraries)}) configs/", line)})


@pytest.mark.slow
@pytest.mark.parametrize("command", read_commands(), ids=str)
def test_commands_of_the_documentation(command):
    """They name the right library, and a checkpoint that its run leaves; what they set is a setting of the config."""
    _, _, library, config, *options = command.split()
    cfg = copy.deepcopy(load(ROOT / config))
    assert cfg.default_scope == library
    # work_dirs/first is that of a shorter run, which tests/test_docs makes.
    for stem, unit, length in re.findall(r"work_dirs/(?!first)(\w+)/(epoch|iter)_(\d+)\.pth", command):
        (trained,) = (load(path) for path in CONFIGS if path.stem == stem)
        assert trained.train_cfg.get("max_epochs" if unit == "epoch" else "max_iters") == int(length)
    settings = dict(option.split("=") for option in options if "=" in option)
    cfg.merge_from_dict(settings)
    if any("init_cfg" in setting for setting in settings):
        model = build(cfg)
        given = [part.init_cfg["type"] for part in (model, model.backbone) if part.init_cfg]
        assert {"mmmsv.AuthorsCheckpoint", "Pretrained"} & set(given)
