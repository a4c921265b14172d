"""A scripted HTTP server that truncates, lies, redirects, stalls and refuses, and logs requests and bytes sent.

`files` maps paths to their content. `scripts` and `heads` list, per path, the actions for the next GET and HEAD
requests; after the last one the server serves the file, completely or from the requested byte on. `answers` maps paths
to an action for every request. `announces` is the metadata sent before the content: "hash" as the hub does, "etag" as
most servers do, or "nothing" but the size.
"""

from __future__ import annotations

import gzip
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HUB_FOLDER = "/datasets/monology/pile-uncopyrighted/resolve/main"
_PIECE = 1 << 14


@dataclass
class Request:
    """A request and its response; `sent` counts the bytes of the body."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str:
        return self.headers.get("Range", "")

    @property
    def start(self) -> int:
        """The first requested byte."""
        return int(self.range.removeprefix("bytes=").removesuffix("-") or 0)


class Handler(BaseHTTPRequestHandler):
    """Run the next action in the script of the requested path."""

    protocol_version = "HTTP/1.1"
    server: Server
    request_logged: Request

    def do_GET(self) -> None:
        self._run_next(self.server.scripts)

    def do_HEAD(self) -> None:
        self._run_next(self.server.heads)

    def _run_next(self, scripts: dict[str, list[Action]]) -> None:
        self.request_logged = Request(self.command, self.path, dict(self.headers))
        self.server.log.append(self.request_logged)
        script = scripts.get(self.path)
        if not script and (answer := self.server.answers.get(self.path)):
            answer(self)
            return
        if self.command == "HEAD" and not script and self.server.scripts.get(self.path) and not self._has_file():
            self.answer(405, b"", {})  # there is no metadata for a path that only a script serves
            return
        (script.pop(0) if script else serve)(self)

    def _has_file(self) -> bool:
        return self.path in self.server.files

    def answer(self, status: int, body: bytes, headers: dict[str, str], *, stop_after: int | None = None) -> None:
        """Send `body` with its length; close the connection after `stop_after` bytes of it."""
        self.begin(status, {"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.send(body[:stop_after])
        if stop_after is not None:
            self.close_connection = True

    def begin(self, status: int, headers: dict[str, str]) -> None:
        """Send the status and the headers that are not empty."""
        self.request_logged.status = status
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        for offset in range(0, len(data), _PIECE):
            piece = data[offset : offset + _PIECE]
            self.wfile.write(piece)
            self.request_logged.sent += len(piece)

    def log_message(self, format: str, *args: Any) -> None:
        pass


Action = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.scripts: dict[str, list[Action]] = {}
        self.heads: dict[str, list[Action]] = {}
        self.answers: dict[str, Action] = {}
        self.announces = "etag"
        self.headers: dict[str, str] = {}  # sent with every file, besides its metadata
        self.log: list[Request] = []
        self.stopping = threading.Event()

    @property
    def gets(self) -> list[Request]:
        return [request for request in self.log if request.method == "GET"]

    @property
    def requested_paths(self) -> list[str]:
        """Paths of the GET requests."""
        return [request.path for request in self.gets]

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(request.sent for request in self.log)

    def metadata_of(self, body: bytes) -> dict[str, str]:
        """Return the headers that describe `body`."""
        metadata = {"hash": hub_headers(body), "etag": {"ETag": strong_etag(body)}, "nothing": {}}[self.announces]
        return {**metadata, **self.headers}

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore that a client disconnected."""


def hub_headers(body: bytes) -> dict[str, str]:
    """Return the headers with which the hub describes a file."""
    return {"X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Linked-Size": str(len(body))}


def strong_etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'


@contextmanager
def running_server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            server.shutdown()
            thread.join()


# Actions of a script


def serve(handler: Handler, *, cut: int | None = None, change: Callable[[bytes], bytes] = lambda body: body) -> None:
    """Serve the file correctly. Stop after `cut` bytes of the response; send `change(body)` in place of the body."""
    server = handler.server
    if handler.path not in server.files:
        handler.answer(404, b"not here", {})
        return
    body = server.files[handler.path]
    headers, content = server.metadata_of(body), change(body)
    requested, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
    if not requested or condition not in (None, headers.get("ETag")):
        handler.answer(200, content, headers, stop_after=cut)
        return
    start = int(requested.removeprefix("bytes=").removesuffix("-"))
    if start >= len(body):
        handler.answer(416, b"", {**headers, "Content-Range": f"bytes */{len(body)}"})
        return
    span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
    handler.answer(206, content[start:], {**headers, **span}, stop_after=cut)


def cut_after(count: int) -> Action:
    """Announce the full response, send `count` bytes, disconnect."""
    return lambda handler: serve(handler, cut=count)


def cut_without_length(count: int) -> Action:
    """Like `cut_after`, but without a Content-Length."""

    def act(handler: Handler) -> None:
        body = handler.server.files[handler.path]
        handler.answer(200, body, {**handler.server.metadata_of(body), "Content-Length": ""}, stop_after=count)

    return act


def respond(status: int, body: bytes = b"", **headers: str) -> Action:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(status, body, named)


def redirect(location: str, **headers: Any) -> Action:
    return respond(302, Location=location, **headers)


def ignore_range(handler: Handler) -> None:
    body = handler.server.files[handler.path]
    handler.answer(200, body, handler.server.metadata_of(body))


def respond_range(span: str, body: bytes = b"other bytes") -> Action:
    """Respond 206 with any Content-Range, which may differ from the requested one."""

    def act(handler: Handler) -> None:
        metadata = handler.server.metadata_of(handler.server.files[handler.path])
        handler.answer(206, body, {**metadata, "Content-Range": span})

    return act


def flip_bit(position: int, cut: int | None = None) -> Action:
    """Serve the file with one bit of the byte at `position` flipped."""

    def flipped(body: bytes) -> bytes:
        return body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :]

    return lambda handler: serve(handler, cut=cut, change=flipped)


def compress_body(handler: Handler) -> None:
    """Compress the response, as a proxy may do without being asked."""
    body = handler.server.files[handler.path]
    handler.answer(200, gzip.compress(body), {**handler.server.metadata_of(body), "Content-Encoding": "gzip"})


def send_chunked(*pieces: bytes, is_complete: bool = True, **headers: str) -> Action:
    """Send the pieces with chunked transfer encoding; if not `is_complete`, disconnect before the final chunk."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def act(handler: Handler) -> None:
        handler.begin(200, {"Transfer-Encoding": "chunked", **named})
        for piece in (*pieces, b"") if is_complete else pieces:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.request_logged.sent += len(piece)
        handler.close_connection = True

    return act


def replace_file(new: bytes, cut: int) -> Action:
    """Serve `cut` bytes, then replace the file."""

    def act(handler: Handler) -> None:
        serve(handler, cut=cut)
        handler.server.files[handler.path] = new

    return act


def stall(after: int = 0) -> Action:
    """Send `after` bytes, then nothing."""

    def act(handler: Handler) -> None:
        body = handler.server.files[handler.path]
        handler.begin(200, {"Content-Length": str(len(body)), **handler.server.metadata_of(body)})
        handler.send(body[:after])
        handler.server.stopping.wait()

    return act


def repeat_head(data: bytes, pause: float = 0.01) -> Action:
    """Send the data again and again where the status line and the headers are due, without ever completing them."""

    def act(handler: Handler) -> None:
        while not handler.server.stopping.wait(pause):
            handler.wfile.write(data)
            handler.wfile.flush()

    return act


def trickle(size: int, pause: float) -> Action:
    """Serve the file `size` bytes at a time, with a pause in seconds after each piece."""

    def act(handler: Handler) -> None:
        body = handler.server.files[handler.path]
        headers, start = handler.server.metadata_of(body), 0
        if requested := handler.headers.get("Range"):
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.begin(206 if requested else 200, {"Content-Length": str(len(body) - start), **headers})
        for offset in range(start, len(body), size):
            handler.send(body[offset : offset + size])
            if handler.server.stopping.wait(pause):
                return

    return act


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until `condition` is true. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.005)
