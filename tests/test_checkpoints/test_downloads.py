"""Downloads are whole or not there, go on where they broke off, and are checked; each failure is one sentence."""

import errno
import io
import os
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmmsv.checkpoints import checksums, downloads
from mmmsv.checkpoints.downloads import cache_folder, fetch

from .refusals import refused

CONTENT = bytes(range(256)) * 40
URL = "https://huggingface.co/authors/file.pth"


@pytest.fixture
def path(server):
    """Where the file comes to lie, which is served."""
    server.put(URL, CONTENT)
    return downloads._path_of(URL)


def left():
    """What is in the cache, but for the file that processes lock while they download."""
    return sorted(path.name for path in cache_folder().iterdir() if not path.name.endswith(".lock"))


def ranges(server):
    return [headers.get("Range") for _, headers in server.requests]


def test_once(server, path):
    assert fetch(URL) == (path, True)
    assert fetch(URL) == (path, False)
    assert path.read_bytes() == CONTENT
    assert [path] == list(path.parent.iterdir())
    assert path.name.startswith("file-")
    assert [place for place, _ in server.requests] == ["/huggingface.co/authors/file.pth"]


@pytest.mark.parametrize("validator", ["etag", "last_modified"])
def test_goes_on_within_one_call(server, path, validator):
    server.etag, server.last_modified = validator == "etag", validator != "etag"
    server.cuts = [3000, 2000]
    fetch(URL)
    assert path.read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=3000-", "bytes=5000-"]
    assert left() == [path.name]


def test_goes_on_in_another_call(server, path):
    server.cuts = [3000, 0]
    with refused(
        rf"^{URL} could not be downloaded through {server.url}/huggingface.co/authors/file.pth \(the connection "
        r"broke off after 3000 of 10240 bytes\); 3000 bytes are kept, with which the next attempt begins; or fetch it "
        rf"by other means, and give its path as authors://PATH, or put it at {path}$"
    ):
        fetch(URL)
    assert left() == [f"{path.name}.part", f"{path.name}.part.json"]
    fetch(URL)
    assert path.read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=3000-"
    assert left() == [path.name]


@pytest.mark.parametrize("lacking", ["ranges", "etag", "strong etag", "lengths"])
def test_nothing_is_kept_where_it_could_not_go_on(server, path, lacking):
    if lacking == "strong etag":
        server.weak = True
    else:
        setattr(server, lacking, False)
    server.cuts = [3000, 3000]
    if lacking == "lengths":  # and without a length a file that broke off looks whole
        server.cuts, server.status = [], 503
    with refused(
        rf"could not be downloaded.*\); fetch it by other means, and give its path as authors://PATH, or put it "
        rf"at {path}$"
    ):
        fetch(URL)
    assert left() == []
    server.status = None
    fetch(URL)
    assert path.read_bytes() == CONTENT
    assert set(ranges(server)) == {None}


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("new", [b"x" * 20000, b"x" * 3000, b"x" * len(CONTENT)], ids=["longer", "shorter", "as long"])
def test_begins_again_where_the_file_has_changed(server, path, new, if_range):
    """``If-Range`` asks for all of it then; of servers that do not heed it, their ETag and length tell."""
    server.cuts, server.if_range = [3000, 0], if_range
    with refused("3000 bytes are kept"):
        fetch(URL)
    server.put(URL, new)
    fetch(URL)
    assert path.read_bytes() == new
    assert left() == [path.name]


def test_was_whole_when_its_process_was_killed(server, path, monkeypatch):
    monkeypatch.setattr(downloads, "put_in_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fetch(URL)
    monkeypatch.undo()
    monkeypatch.setattr(downloads, "cache_folder", lambda: path.parent)
    monkeypatch.setenv("MMMSV_MIRROR", server.url)
    fetch(URL)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_what_is_kept_was_damaged(server, path):
    server.cuts = [3000, 0]
    with refused("3000 bytes are kept"):
        fetch(URL)
    (path.parent / f"{path.name}.part.json").write_text('{"length": "many"}')
    fetch(URL)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 500])
def test_errors_of_a_server(server, path, status):
    server.status = status
    with refused(rf"could not be downloaded through .* \(HTTP Error {status}: .*\); fetch it by other means"):
        fetch(URL)
    assert left() == []
    assert len(server.requests) == 1


def test_answers_that_are_no_answers(server, path, monkeypatch):
    server.status = 206
    with refused(
        r"could not be downloaded .* \(the server sent a part of the file where all was asked for\); fetch it"
    ):
        fetch(URL)
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.05)
    server.hold.clear()
    with refused(r"could not be downloaded .* \(timed out\); fetch it"):
        fetch(URL)
    server.hold.set()
    assert left() == []


def test_no_server(server, path, monkeypatch):
    monkeypatch.setenv("MMMSV_MIRROR", "http://127.0.0.1:9")
    with refused(r"could not be downloaded through http://127.0.0.1:9/.* \(.*Connection refused.*\); fetch it"):
        fetch(URL)
    monkeypatch.delenv("MMMSV_MIRROR")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror(-2, "unknown")))
    with refused(r"could not be downloaded \(.*unknown.*\); set MMMSV_MIRROR to the address of a mirror, or fetch it"):
        fetch(URL)
    assert left() == []


class FullDisk(io.FileIO):
    def write(self, content):
        super().write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_full(server, path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
        with refused(
            r"could not be downloaded \(.*No space left on device\); make room, or set TORCH_HOME to a folder"
        ):
            fetch(URL)
    assert left() == []
    fetch(URL)
    assert path.read_bytes() == CONTENT


class TestReadOnlyCache:
    """Simulated, since root can write everywhere."""

    @pytest.fixture
    def read_only(self, monkeypatch):
        def refuse(path, flags, *arguments, **options):
            if flags & (os.O_WRONLY | os.O_RDWR):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return really(path, flags, *arguments, **options)

        def refuse_file(path, mode="r", *arguments, **options):
            if not mode.startswith("r"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return really_file(path, mode, *arguments, **options)

        really, really_file = os.open, Path.open

        def apply():
            monkeypatch.setattr(os, "open", refuse)
            monkeypatch.setattr(Path, "open", refuse_file)

        return apply

    def test_with_the_file(self, server, path, read_only, log):
        fetch(URL)
        read_only()
        assert fetch(URL) == (path, False)
        checksums.note(path)
        assert (
            log[-1] == f"the SHA-256 of {path} is not noted, since its folder cannot be written (Read-only file system)"
        )

    def test_without_it(self, server, path, read_only):
        cache_folder().mkdir(parents=True)
        read_only()
        with refused(r"could not be downloaded \(.*Read-only file system.*\); set TORCH_HOME to a folder that can be"):
            fetch(URL)
        assert left() == []


class TestChecksums:
    @pytest.fixture(autouse=True)
    def noted(self, server, path):
        checksums.note(fetch(URL).path)
        return path.with_name(f"{path.name}.sha256")

    def test_note_is_that_of_sha256sum(self, noted):
        run = subprocess.run(["sha256sum", "--check", noted.name], cwd=noted.parent, capture_output=True, check=True)
        assert run.stdout.endswith(b"OK\n")

    def test_changed_file(self, path, noted):
        path.write_bytes(CONTENT[:-1])
        with refused(
            rf"^{path} has changed since it was first used \(SHA-256 \w+..., \w+... is noted in {noted}\): remove both "
            "files to download it again if you trust the new one$"
        ):
            fetch(URL)
        path.unlink()
        noted.unlink()
        assert fetch(URL).path.read_bytes() == CONTENT

    def test_another_download(self, server, path, noted):
        """Nothing of it gets the name of the file."""
        path.unlink()
        server.put(URL, b"another")
        with refused(
            rf"^what was downloaded for {path} is not what it was when it was first used .*: remove the note if you "
        ):
            fetch(URL)
        assert left() == [noted.name]
        noted.unlink()
        assert fetch(URL).path.read_bytes() == b"another"

    def test_damaged_note(self, noted):
        noted.write_text("nothing\n")
        with refused(rf"^{noted} holds no SHA-256 as sha256sum writes it; remove it, and it is written anew$"):
            fetch(URL)


def test_processes_at_once_download_once(server, path, log):
    """As threads: each opens the file that is locked anew, as a process does."""
    server.hold.clear()
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(fetch, URL) for _ in range(4)]
        while sum("waiting for another process" in line for line in log) < 3:
            threading.Event().wait(0.01)
        server.hold.set()
    assert sorted(result.result().is_new for result in results) == [False, False, False, True]
    assert len(server.requests) == 1
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [None, 404])
def test_other_processes_of_a_run_wait(server, path, monkeypatch, status):
    """Also where the first one fails."""
    calls = []
    monkeypatch.setattr(downloads, "is_main_process", lambda: False)
    monkeypatch.setattr(downloads, "barrier", lambda: calls.append(len(server.requests)))
    fetch(URL)
    monkeypatch.setattr(downloads, "is_main_process", lambda: True)
    path.unlink()
    server.status = status
    if status:
        with refused("404"):
            fetch(URL)
    else:
        fetch(URL)
    assert calls == [0, 2]


def test_mirror(server, monkeypatch):
    """It is for GitHub and Hugging Face; what is a # in a path stays ``%23``."""
    url = "https://github.com/authors/repository/releases/download/%23v2/file.pth?download=true"
    server.put(url.partition("?")[0], CONTENT)
    fetch(url)
    assert server.requests[-1][0] == "/github.com/authors/repository/releases/download/%23v2/file.pth?download=true"
    server.put("http://file.pth", CONTENT)
    fetch(f"{server.url}/file.pth")
    assert server.requests[-1][0] == "/file.pth"
    monkeypatch.setenv("MMMSV_MIRROR", "mirror.example")
    with refused("MMMSV_MIRROR is 'mirror.example', expected the address of a mirror: https://...$"):
        fetch(url.replace("file", "other"))


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log"])
def test_progress_is_for_terminals(server, path, monkeypatch, capsys, terminal):
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    fetch(URL)
    assert ("100%" in capsys.readouterr().err) == terminal
