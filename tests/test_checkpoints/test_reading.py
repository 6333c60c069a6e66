"""Reading checkpoint files, whatever is in them, also over HTTP."""

import importlib
import pickle
import sys
import types
from importlib.util import find_spec
from random import Random

import pytest
import torch
from mmengine.runner import load_checkpoint

from mmmsv.checkpoints import AuthorsCheckpoint
from mmmsv.checkpoints.downloads import fetch
from mmmsv.checkpoints.reading import read_checkpoint, weights_of

from .refusals import refused


def test_settings_of_vmambas_training_are_read_as_plain_data(authors, monkeypatch):
    """Its files hold a yacs CfgNode beside the weights: harmless, and refusing it would refuse the file."""
    CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    package.config, module.CfgNode = module, CfgNode
    monkeypatch.setitem(sys.modules, "yacs", package)
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    settings = CfgNode(MODEL=CfgNode(DROP_PATH_RATE=0.2))
    settings.__dict__["__immutable__"] = True
    path = authors.save({"model": authors.weights, "config": settings})
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    AuthorsCheckpoint(path)(authors.model())
    with pytest.raises(pickle.UnpicklingError):  # allowed while it is read, and no longer
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_bytes_lost_or_changed_anywhere(authors, zipped):
    """Whatever torch trips over, the message is one line; bytes inside a tensor cannot be noticed."""
    path, random = authors.folder / "file.pth", Random(0)
    torch.save({"model": dict(list(authors.weights.items())[:8])}, path, _use_new_zipfile_serialization=zipped)
    whole, messages = path.read_bytes(), []
    for attempt in range(60):
        content = bytearray(whole)
        if attempt % 3:
            for place in random.choices(range(len(content)), k=attempt):
                content[place] = random.randrange(256)
        else:
            content = content[: random.randrange(len(content))]
        path.write_bytes(content)
        try:
            weights_of(read_checkpoint(path), path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert not any("\n" in message for message in messages)


class TestDownload:
    @pytest.fixture
    def served(self, authors, server):
        authors.folder = server.folder
        return server.url

    def test_is_kept(self, authors, served):
        path = authors.save({"model": authors.weights}, "msvmamba.pth")
        AuthorsCheckpoint(f"{served}/msvmamba.pth")(authors.model())
        path.unlink()
        model = authors.model(out_indices=(3,))
        AuthorsCheckpoint(f"{served}/msvmamba.pth")(model)
        assert torch.equal(model.stem.conv1.weight, authors.weights["patch_embed.0.weight"])

    def test_files_of_one_name_are_two(self, authors, served):
        for folder, offset in (("a", 0), ("b", 1)):
            (authors.folder / folder).mkdir()
            authors.save({"model": {k: v + offset for k, v in authors.weights.items()}}, f"{folder}/checkpoint.pth")
            model = authors.model(out_indices=(3,))
            AuthorsCheckpoint(f"{served}/{folder}/checkpoint.pth")(model)
            assert torch.equal(model.stem.conv1.weight, authors.weights["patch_embed.0.weight"] + offset)

    def test_what_was_cut_short_is_fetched_again(self, authors, served):
        path = authors.save({"model": authors.weights}, "msvmamba.pth")
        whole = path.read_bytes()
        path.write_bytes(whole[:5000])
        with pytest.raises(ValueError, match="cut off or damaged"):
            AuthorsCheckpoint(f"{served}/msvmamba.pth")(authors.model())
        path.write_bytes(whole)
        AuthorsCheckpoint(f"{served}/msvmamba.pth")(authors.model())

    def test_file_of_the_cache_that_cannot_be_read(self, authors, served):
        """It stays, since it may have been put there by hand."""
        url = f"{served}/msvmamba.pth"
        authors.save({"model": authors.weights}, "msvmamba.pth")
        path, _ = fetch(url)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ValueError, match=rf"cut off or damaged.*\. Remove {path}, and it is downloaded again$"):
            read_checkpoint(url)
        path.unlink()
        assert read_checkpoint(url)["model"].keys() == authors.weights.keys()

    def test_by_mmengine(self, authors, served):
        """Whose loader for URLs finds our weights in other entries, and reads safetensors."""
        weights = {name: torch.full_like(value, 0.5) for name, value in authors.model().state_dict().items()}
        authors.save({"model": {f"_orig_mod.{name}": value for name, value in weights.items()}}, "ours.pth")
        names = ["ours.pth"]
        if find_spec("safetensors"):
            importlib.import_module("safetensors.torch").save_file(weights, authors.folder / "ours.safetensors")
            names.append("ours.safetensors?download=true")
        for name in names:
            model = authors.model()
            load_checkpoint(model, f"{served}/{name}")
            assert all((value == 0.5).all() for value in model.state_dict().values())

    def test_there_is_nowhere_to_keep_it(self, authors, served, tmp_path):
        (tmp_path / "hub").touch()  # a file: a folder without write permission is one that root can write
        authors.save({"model": authors.weights}, "msvmamba.pth")
        with refused(
            r"could not be downloaded \(.*hub/checkpoints'\); set TORCH_HOME to a folder that can be written, or"
        ):
            AuthorsCheckpoint(f"{served}/msvmamba.pth")(authors.model())

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("/nothing.pth", r"nothing.pth could not be downloaded \(HTTP Error 404: File not found\)"),
            ("/with space.pth", "could not be downloaded .*can't contain control characters"),
            ("", "is no URL of a file: it names none"),
        ],
        ids=["no file", "no path", "no name"],
    )
    def test_not_there(self, authors, served, path, message):
        with refused(message):
            AuthorsCheckpoint(served + path)(authors.model())


@pytest.mark.parametrize(
    "path", ["http://[::1/x.pth", "~nobody-of-this-name/x.pth", "x" * 5000], ids=["URL", "home", "long"]
)
def test_paths_that_are_none(authors, path):
    with pytest.raises(ValueError, match=r"is no URL of a file|is not there|cannot be looked for") as error:
        AuthorsCheckpoint(path)(authors.model())
    assert "\n" not in str(error.value)
