"""A scripted HTTP server that cuts, lies, moves, stalls and refuses, and keeps a log of what it was asked and sent.

`files` holds what it serves by path. `scripts` and `heads` say for a path what the next answers to GET and to HEAD are;
when they have run out it serves the file, whole or from where it was asked. `says` is what it lets know of a file
beforehand: "hash" as the hub does, "etag" as most servers do, or "nothing" but the size.
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
    """What was asked, and how it was answered; `sent` bytes of a body left."""

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
        """The first byte that was asked for."""
        return int(self.range.removeprefix("bytes=").removesuffix("-") or 0)


class Handler(BaseHTTPRequestHandler):
    """Does what the script of its path says next."""

    protocol_version = "HTTP/1.1"
    server: Server
    request_logged: Request

    def do_GET(self) -> None:
        self._follow(self.server.scripts)

    def do_HEAD(self) -> None:
        self._follow(self.server.heads)

    def _follow(self, scripts: dict[str, list[Act]]) -> None:
        self.request_logged = Request(self.command, self.path, dict(self.headers))
        self.server.log.append(self.request_logged)
        script = scripts.get(self.path)
        if self.command == "HEAD" and not script and self.server.scripts.get(self.path) and not self._has_file():
            self.answer(405, b"", {})  # of what only a script knows it says nothing beforehand
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
        """Send the head of an answer; a header that is "" is left out."""
        self.request_logged.status = status
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def send(self, data: bytes) -> None:
        for place in range(0, len(data), _PIECE):
            piece = data[place : place + _PIECE]
            self.wfile.write(piece)
            self.request_logged.sent += len(piece)

    def log_message(self, format: str, *args: Any) -> None:
        pass


Act = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.scripts: dict[str, list[Act]] = {}
        self.heads: dict[str, list[Act]] = {}
        self.says = "etag"
        self.headers: dict[str, str] = {}  # of every file, beside what is said of it
        self.log: list[Request] = []
        self.stopping = threading.Event()

    @property
    def gets(self) -> list[Request]:
        return [request for request in self.log if request.method == "GET"]

    @property
    def asked(self) -> list[str]:
        """The paths of which bytes were asked."""
        return [request.path for request in self.gets]

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(request.sent for request in self.log)

    def told(self, body: bytes) -> dict[str, str]:
        """The headers by which the server says what `body` is."""
        said = {"hash": linked(body), "etag": {"ETag": strong_etag(body)}, "nothing": {}}[self.says]
        return {**said, **self.headers}

    def handle_error(self, request: object, client_address: object) -> None:
        """The client went away, which here it may."""


def linked(body: bytes) -> dict[str, str]:
    """What the hub says of a file."""
    return {"X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Linked-Size": str(len(body))}


def strong_etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'


@contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            server.shutdown()
            thread.join()


# What a script is made of.


def serve(handler: Handler, *, cut: int | None = None, change: Callable[[bytes], bytes] = lambda body: body) -> None:
    """Serve the file as a good server does; stop after `cut` bytes of it, or send what `change` makes of the file."""
    server = handler.server
    if handler.path not in server.files:
        handler.answer(404, b"not here", {})
        return
    body = server.files[handler.path]
    headers, sent = server.told(body), change(body)
    wanted, unless = handler.headers.get("Range"), handler.headers.get("If-Range")
    if not wanted or unless not in (None, headers.get("ETag")):
        handler.answer(200, sent, headers, stop_after=cut)
        return
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    if start >= len(body):
        handler.answer(416, b"", {**headers, "Content-Range": f"bytes */{len(body)}"})
        return
    span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
    handler.answer(206, sent[start:], {**headers, **span}, stop_after=cut)


def cut_after(count: int) -> Act:
    """Announce all that was asked for, send `count` bytes, hang up."""
    return lambda handler: serve(handler, cut=count)


def cut_unannounced(count: int) -> Act:
    """As `cut_after`, without a Content-Length by which the client could notice."""

    def act(handler: Handler) -> None:
        body = handler.server.files[handler.path]
        handler.answer(200, body, {**handler.server.told(body), "Content-Length": ""}, stop_after=count)

    return act


def say(status: int, body: bytes = b"", **headers: str) -> Act:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(status, body, named)


def redirect(location: str, **headers: str) -> Act:
    return say(302, Location=location, **headers)


def ignore_range(handler: Handler) -> None:
    body = handler.server.files[handler.path]
    handler.answer(200, body, handler.server.told(body))


def ranged(span: str, body: bytes = b"other bytes") -> Act:
    """206 with any Content-Range, which need not be the one that was asked for."""

    def act(handler: Handler) -> None:
        known = handler.server.told(handler.server.files[handler.path])
        handler.answer(206, body, {**known, "Content-Range": span})

    return act


def announce(length: int) -> Act:
    """Lie about how long the file is."""

    def act(handler: Handler) -> None:
        body = handler.server.files[handler.path]
        headers = {**handler.server.told(body), "Content-Length": str(length)}
        handler.answer(200, body[:length], headers, stop_after=length)

    return act


def flipped(at: int, cut: int | None = None) -> Act:
    """Serve the file with one bit of byte `at` the other way."""
    return lambda handler: serve(
        handler, cut=cut, change=lambda body: body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    )


def zipped(handler: Handler) -> None:
    """Compress on the way, as a proxy may though nobody asked it to."""
    body = handler.server.files[handler.path]
    handler.answer(200, gzip.compress(body), {**handler.server.told(body), "Content-Encoding": "gzip"})


def in_chunks(*pieces: bytes, whole: bool = True, **headers: str) -> Act:
    """Send the pieces with chunked transfer encoding; if not `whole`, hang up before the chunk that ends them."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def act(handler: Handler) -> None:
        handler.begin(200, {"Transfer-Encoding": "chunked", **named})
        for piece in (*pieces, b"") if whole else pieces:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.request_logged.sent += len(piece)
        handler.close_connection = True

    return act


def swap(new: bytes, cut: int) -> Act:
    """Serve `cut` bytes; from then on the file is another."""

    def act(handler: Handler) -> None:
        serve(handler, cut=cut)
        handler.server.files[handler.path] = new

    return act


def stall(after: int = 0) -> Act:
    """Send `after` bytes, and then nothing for ever."""

    def act(handler: Handler) -> None:
        body = handler.server.files[handler.path]
        handler.begin(200, {"Content-Length": str(len(body)), **handler.server.told(body)})
        handler.send(body[:after])
        handler.server.stopping.wait()

    return act


def trickle(piece: int, pause: float) -> Act:
    """Serve what was asked, `piece` bytes at a time with a pause after each."""

    def act(handler: Handler) -> None:
        body = handler.server.files[handler.path]
        known, start = handler.server.told(body), 0
        if wanted := handler.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            known["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.begin(206 if wanted else 200, {"Content-Length": str(len(body) - start), **known})
        for place in range(start, len(body), piece):
            handler.send(body[place : place + piece])
            if handler.server.stopping.wait(pause):
                return

    return act


def then(act: Act, do: Callable[[], object]) -> Act:
    """`act`, and something else after it."""

    def both(handler: Handler) -> None:
        act(handler)
        do()

    return both


def wait_for(what: Callable[[], object], seconds: float = 20.0) -> None:
    """Until `what` is true; an AssertionError when it does not become so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)
