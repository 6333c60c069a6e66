import io
import json
import logging

import pytest
import torch
from mmengine.logging import MMLogger

from mmmsv.checkpoints import downloads, released
from mmmsv.models import MSVMamba
from tests.test_models.golden import arch_of, load_golden

from .server import serving


class Authors:
    """A small classifier of the authors' NeurIPS family: its weights, its arch, and files made of them."""

    def __init__(self, folder):
        golden = load_golden("neurips.pt")
        self.folder, self.meta = folder, golden["meta"]
        self.weights, self.outnorm = golden["model"], golden["outnorm"]

    def model(self, **options):
        return MSVMamba(arch_of(self.meta), **options)

    def dense(self, **others):
        """The names of a detector's checkpoint."""
        backbone = {**self.weights, **self.outnorm}
        named = {f"backbone.{name}": value for name, value in backbone.items() if not name.startswith("classifier.")}
        return {**named, **others}

    def save(self, checkpoint, name="file.pth"):
        path = self.folder / name
        torch.save(checkpoint, path)
        return path


@pytest.fixture
def authors(tmp_path):
    return Authors(tmp_path)


@pytest.fixture
def log():
    """The lines that are logged."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine, also for the URLs of GitHub and Hugging Face, and an empty folder for the cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(downloads, "_PAUSE", 0)
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        monkeypatch.setenv("MMMSV_MIRROR", f"{server.url}/")
        yield server


@pytest.fixture
def release(server, tmp_path, monkeypatch):
    """A function that releases a file under a name in place of those that there are; it returns the file's URL."""
    monkeypatch.setattr(released, "MODEL_INDEX", tmp_path / "model-index.yml")

    def put(name, content):
        url = f"https://github.com/authors/repository/releases/download/%23v2/{name}.pth"
        models = [{"Name": name, "Converted From": {"Weights": url}}]
        (tmp_path / "metafile.yml").write_text(json.dumps({"Models": models}))
        released.MODEL_INDEX.write_text(json.dumps({"Import": ["metafile.yml"]}))
        buffer = io.BytesIO()
        torch.save(content, buffer)
        server.put(url, buffer.getvalue())
        return url

    return put
