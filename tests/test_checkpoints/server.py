"""A web server on this machine, which does what servers in the field do: parts of files, broken connections, errors."""

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlparse


@dataclass
class Server:
    """Serves the files of a folder.

    Args:
        folder: Where they are.
        ranges: Whether it sends parts of files.
        if_range: Whether it heeds ``If-Range``, or sends a part of any version.
        etag: What it tells a version by.
        weak: Whether its ETags may be the same for files that are not the same byte by byte.
        last_modified: The same.
        lengths: Whether it says how long a file is.
        cuts: After how many bytes it breaks off the next answers.
        status: What it answers instead of files.
        hold: Cleared, it lets requests wait.
        requests: What it was asked for: the path and the headers of each request.
    """

    folder: Path
    ranges: bool = True
    if_range: bool = True
    etag: bool = True
    weak: bool = False
    last_modified: bool = False
    lengths: bool = True
    cuts: list[int] = field(default_factory=list)
    status: int | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def put(self, url: str, content: bytes) -> None:
        """Serve a file at the place that a mirror has for a URL."""
        path = self.folder / unquote(url.partition("://")[2])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""

    def do_GET(self):
        server = self.server.settings
        server.hold.wait()
        server.requests.append((self.path, dict(self.headers)))
        path = server.folder / unquote(urlparse(self.path).path).lstrip("/")
        if server.status or not path.is_file():
            self.send_error(server.status or HTTPStatus.NOT_FOUND, None if server.status else "File not found")
            return
        content, start = path.read_bytes(), 0
        validators = {
            **(
                {"ETag": f'{"W/" if server.weak else ""}"{hashlib.sha256(content).hexdigest()[:8]}"'}
                if server.etag
                else {}
            ),
            **({"Last-Modified": self.date_time_string(len(content))} if server.last_modified else {}),
        }
        asked, known = self.headers.get("Range"), self.headers.get("If-Range")
        if asked and server.ranges and (not server.if_range or known in validators.values()):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                return
        self.send_response(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        for name, value in validators.items():
            self.send_header(name, value)
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: server.cuts.pop(0)] if server.cuts else rest)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder while the context lasts."""
    settings = Server(folder)
    settings.hold.set()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.settings = settings
    settings.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield settings
    finally:
        server.shutdown()
        server.server_close()
