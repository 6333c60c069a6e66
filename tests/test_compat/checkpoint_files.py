"""Reading and rewriting checkpoint files."""

import contextlib
import zipfile
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader

import mmmsv  # noqa: F401  makes MMEngine's checkpoints load
from mmmsv.compat.weights_only import load_weights_only

RESTRICTED = torch.__version__ >= (2, 6)


def load(path):
    """Load a checkpoint as MMEngine does; with a torch.load that runs what it is given, as the authors' are loaded."""
    return (
        CheckpointLoader.load_checkpoint(str(path), map_location="cpu") if RESTRICTED else load_weights_only(Path(path))
    )


@contextlib.contextmanager
def nothing_allowed():
    """As in a process that has imported nothing but torch, which before 2.6 builds whatever a file asks for."""
    if not RESTRICTED:
        yield
        return
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def rewrite_pickle(path, change):
    """Change the pickled part of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
