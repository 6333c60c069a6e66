"""Write files whole or not at all."""

import contextlib
import os
from pathlib import Path
from typing import IO

# What the name of an unfinished file ends in.
UNFINISHED = ".mmmsv-unfinished"


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file that appears at once; a process killed meanwhile leaves what was there before.

    Args:
        path: Path on a local file system; its folder is made if it is missing. The content first goes to a file beside
            it, whose name ends in ``.mmmsv-unfinished``, and which is removed if writing fails.
        content: Content of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            flush(file)
        put_in_place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def flush(file: IO[bytes]) -> None:
    """Bring what was written to a file to the disk.

    Else its name could get there before its content does, and a power cut leave an empty file.
    """
    file.flush()
    os.fsync(file.fileno())


def put_in_place(unfinished: Path, path: Path) -> None:
    """Give a finished file, which was flushed, its name in the same folder, in the place of what is there."""
    unfinished.replace(path)
    if hasattr(os, "O_DIRECTORY"):  # Windows opens no folders.
        folder = os.open(path.parent, os.O_DIRECTORY)
        # The file is in place; some network file systems cannot flush a folder.
        with contextlib.suppress(OSError):
            os.fsync(folder)
        os.close(folder)
