import logging

import pytest
import torch
from mmengine.logging import MMLogger

from mmmsv.models import MSVMamba
from tests.test_models.golden import arch_of, load_golden


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
