"""Note the SHA-256 of a file when it is first used, and compare it at each later use."""

import hashlib
from pathlib import Path

from mmengine.logging import print_log

from mmmsv.messages import first_sentence
from mmmsv.whole_files import write_whole


def check(path: Path, content: Path | None = None) -> None:
    """Compare a file with what was noted of it; where nothing was noted, do nothing.

    Args:
        path: Of the file, which the note is beside.
        content: A file whose content is compared in its place, before it gets that name.

    Raises:
        ValueError: The content is another one, a file cannot be read, or the note is no line of ``sha256sum``.
    """
    beside = _note_of(path)
    if not beside.is_file():
        return
    try:
        noted = beside.read_text(errors="replace").split(maxsplit=1)[:1]
        found = _sha256(content or path)
    except OSError as error:
        raise ValueError(f"{path} cannot be compared with {beside} ({first_sentence(error)})") from error
    if not noted or len(noted[0]) != 64:
        raise ValueError(f"{beside} holds no SHA-256 as sha256sum writes it; remove it, and it is written anew")
    if found != noted[0].lower():
        what = (
            f"{path} has changed since"
            if content is None
            else f"what was downloaded for {path} is not what it was when"
        )
        raise ValueError(
            f"{what} it was first used (SHA-256 {found[:16]}..., {noted[0][:16]}... is noted in {beside}): remove "
            f"{'both files to download it again' if content is None else 'the note'} if you trust the new one"
        )


def note(path: Path) -> None:
    """Write the SHA-256 of a file beside it, as ``sha256sum`` does, if it was not noted yet.

    Where that cannot be written, the log says so.
    """
    beside = _note_of(path)
    if beside.is_file():
        return
    try:
        write_whole(beside, f"{_sha256(path)}  {path.name}\n".encode())
    except OSError as error:
        print_log(
            f"the SHA-256 of {path} is not noted, since its folder cannot be written ({error.strerror})", "current"
        )


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
