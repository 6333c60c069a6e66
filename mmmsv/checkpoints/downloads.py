"""Download files into torch.hub's cache: whole or not at all, and on from where an earlier attempt broke off.

What there is of a file is in ``NAME.part``, and what its server said of it in ``NAME.part.json``: without that it could
not be told whether the rest is of the same file. Both are kept as long as the server can send the rest alone.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from filelock import FileLock, Timeout
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from mmmsv import __version__
from mmmsv.messages import first_sentence
from mmmsv.whole_files import flush, put_in_place, write_whole

from .checksums import check

# In seconds: without a byte of an answer, and between two attempts.
_TIMEOUT = 60.0
_PAUSE = 1.0
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What MMMSV_MIRROR stands in for.
_MIRRORED = ("github.com", "huggingface.co")


class Cached(NamedTuple):
    """A file in the cache, and whether this process has just downloaded it."""

    path: Path
    is_new: bool


def is_url(source: str) -> bool:
    """Whether a source is fetched over HTTP."""
    return source.startswith(("http://", "https://"))


def cache_folder() -> Path:
    """Name the folder that torch.hub keeps files in: ``checkpoints`` in ``TORCH_HOME``, or in the user's cache."""
    return Path(torch.hub.get_dir(), "checkpoints")


def fetch(url: str) -> Cached:
    """Return a file of the cache; download it if it is not there.

    In a distributed run the first process downloads, and those on other machines after it. Of several processes on one
    machine one downloads, and the others wait. A terminal shows the progress.

    Args:
        url: ``http://`` or ``https://``. Two URLs are two files, whatever their names are. With
            ``MMMSV_MIRROR=https://MIRROR`` in the environment, files of github.com and huggingface.co are fetched from
            ``https://MIRROR/github.com/...`` and ``https://MIRROR/huggingface.co/...``.

    Raises:
        ValueError: It cannot be fetched, or its content is not what was noted when it was first used; in one line.
    """
    path = _path_of(url)
    is_new = False
    try:
        if is_main_process():
            is_new = _fetch(url, path)
    finally:
        barrier()  # also when it failed: the others would wait for ever
    if not is_main_process():
        is_new = _fetch(url, path)
    return Cached(path, is_new)


def _path_of(url: str) -> Path:
    try:
        name = Path(urlparse(url).path)
    except ValueError as error:
        raise ValueError(f"{url} is no URL of a file ({error})") from error
    if not name.name:
        raise ValueError(f"{url} is no URL of a file: it names none")
    # Files of one name from two places are two files.
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return cache_folder() / f"{name.stem}-{digest}{name.suffix}"


def _fetch(url: str, path: Path) -> bool:
    """Download a file that is not there, and check one that is; return whether it was downloaded."""
    address, part = _address_of(url), _Part(path)
    through, advice = "", f"fetch it by other means, and give its path as authors://PATH, or put it at {path}"
    if address != url:
        through = f" through {address}"
    elif _host_of(url) in _MIRRORED:
        advice = f"set MMMSV_MIRROR to the address of a mirror, or {advice}"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                if not path.is_file():
                    _download(address, part)
                    return True
    except _DownloadError as error:
        if part.version:
            advice = f"{part.size} bytes are kept, with which the next attempt begins; or {advice}"
        raise ValueError(f"{url} could not be downloaded{through} ({error}); {advice}") from error
    except OSError as error:
        if error.errno in _FULL:
            advice = "make room, or set TORCH_HOME to a folder that has some"
        elif error.errno in _NOT_WRITABLE:
            advice = f"set TORCH_HOME to a folder that can be written, or {advice}"
        raise ValueError(f"{url} could not be downloaded ({first_sentence(error)}); {advice}") from error
    check(path)
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process of this machine downloads a file."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print_log(f"waiting for another process that downloads {path}", "current")
        lock.acquire()
    try:
        yield
        with contextlib.suppress(OSError):  # Windows removes no open files.
            # Whoever waits for it, or makes it anew, finds the file.
            Path(lock.lock_file).unlink()
    finally:
        lock.release()


def _host_of(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def _address_of(url: str) -> str:
    """Name where a URL is fetched from, at a mirror if there is one."""
    mirror = os.environ.get("MMMSV_MIRROR")
    if not mirror or _host_of(url) not in _MIRRORED:
        return url
    if not is_url(mirror):
        raise ValueError(f"MMMSV_MIRROR is {mirror!r}, expected the address of a mirror: https://...")
    return f"{mirror.rstrip('/')}/{url.partition('://')[2]}"


class _DownloadError(Exception):
    """The server cannot be reached, refuses, or broke off; more may come of another attempt."""


class _Version(NamedTuple):
    """What a server says of a file.

    Args:
        length: In bytes.
        validator: By what it knows whether the file is still the same: its strong ETag, or when it was last modified.
    """

    length: int
    validator: str


class _Part:
    """What there is of a file, and of which version of it, if the server can send the rest alone."""

    def __init__(self, path: Path) -> None:
        self.whole = path
        self.path = path.with_name(f"{path.name}.part")
        self._said = path.with_name(f"{path.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def version(self) -> _Version | None:
        try:
            version = _Version(**json.loads(self._said.read_text()))
            return version if 0 < self.size <= version.length else None
        except (OSError, TypeError, ValueError):  # nothing there, or nothing to go on from
            return None

    def begin(self, version: _Version | None) -> None:
        self.remove()
        self.path.touch()
        if version:
            write_whole(self._said, json.dumps(version._asdict()).encode())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._said.unlink(missing_ok=True)


def _download(address: str, part: _Part) -> None:
    """Download a file, attempt after attempt as long as each brings more of it."""
    print_log(f"downloading {address} to {part.whole}", "current")
    console, most = Console(stderr=True), part.size
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            show = partial(progress.update, progress.add_task(part.whole.name, total=None))
            while True:
                try:
                    _append(address, part, show)
                    break
                except _DownloadError:
                    if part.size <= most:
                        raise
                    most = part.size
                    time.sleep(_PAUSE)
        check(part.whole, content=part.path)
        put_in_place(part.path, part.whole)
    except (OSError, ValueError):  # no room for it, or not the file that it was
        part.remove()
        raise
    finally:
        if not part.version:
            part.remove()


def _append(address: str, part: _Part, show: Callable[..., None]) -> None:
    """Download what is missing of a file, or all of it where there is nothing or the server has another version."""
    if part.version and part.size == part.version.length:
        return
    with _open(address, part) as response:
        if response.status != 206:
            part.begin(_version_of(response))
        length = part.version.length if response.status == 206 and part.version else _length_of(response)
        done = part.size
        with part.path.open("ab") as file:
            for content in _contents(response):
                file.write(content)
                done += len(content)
                show(completed=done, total=length)
            flush(file)
    if length is not None and done != length:
        raise _DownloadError(f"the connection broke off after {done} of {length} bytes")


def _open(address: str, part: _Part) -> HTTPResponse:
    """Ask for the rest of a file, or for all of it; of a partial answer it is certain that it is the rest."""
    headers, version = {"User-Agent": f"mmmsv/{__version__}"}, part.version
    if version:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": version.validator}
    try:
        response = urlopen(Request(address, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        with error:
            if error.code != 416 or not version:
                raise _DownloadError(first_sentence(error)) from error
    except URLError as error:
        raise _DownloadError(str(error.reason)) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _DownloadError(first_sentence(error)) from error
    else:
        if response.status != 206 or (version and _is_rest(response, part.size, version)):
            return response
        response.close()
        if not version:
            raise _DownloadError("the server sent a part of the file where all was asked for")
    part.remove()
    return _open(address, part)


def _is_rest(response: HTTPResponse, size: int, version: _Version) -> bool:
    """Whether a partial answer goes on with the same file: servers that know no ``If-Range`` send a part of any."""
    place = f"bytes {size}-{version.length - 1}/{version.length}"
    return response.headers.get("Content-Range") == place and _validator_of(response) in ("", version.validator)


def _version_of(response: HTTPResponse) -> _Version | None:
    """Return by what the rest of a file can be asked for later, if it can."""
    length, validator = _length_of(response), _validator_of(response)
    if length is None or not validator or response.headers.get("Accept-Ranges") != "bytes":
        return None
    return _Version(length, validator)


def _length_of(response: HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _validator_of(response: HTTPResponse) -> str:
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _contents(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while content := response.read(1 << 20):
            yield content
    except (OSError, HTTPException) as error:
        raise _DownloadError(first_sentence(error)) from error
