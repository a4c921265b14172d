"""Downloads from a server that cuts, lies, moves and refuses: whole files or errors, never anything between."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline import raw, sources
from pipeline.download import Downloaded, download, plan
from pipeline.errors import (
    BadConfig,
    BadData,
    InkstoneError,
    NotPermitted,
    ProtocolBroken,
    RemoteGone,
    TryAgain,
    UpstreamChanged,
)
from pipeline.files import TEMPORARY
from pipeline.locks import lock
from pipeline.progress import Silent
from pipeline.sources import Source, SourceFile

HUB_FOLDER = "/datasets/monology/pile-uncopyrighted/resolve/main"
MIB = 1 << 20


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str:
        return self.headers.get("Range", "")


class Handler(BaseHTTPRequestHandler):
    """Does what the script of its path says next; without one it serves the file, whole or the range asked for."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.log.append(Request(self.path, dict(self.headers)))
        script = self.server.scripts.get(self.path)
        (script.pop(0) if script else serve)(self)

    def do_HEAD(self) -> None:
        """What a server that knows HEAD says of the file; of what only a script knows it says nothing."""
        body = self.server.files.get(self.path)
        status = 200 if body is not None else 405 if self.path in self.server.scripts else 404
        self.answer(status, body or b"", self.server.headers if status == 200 else {}, stop_after=0)

    def answer(self, status: int, body: bytes, headers: dict[str, str], *, stop_after: int | None = None) -> None:
        """Send `body` with its length; close the connection after `stop_after` bytes of it."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:stop_after])
        if stop_after is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


Act = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    """`files` by path, `scripts` of what to do first for a path, `headers` of every file, a log of all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.scripts: dict[str, list[Act]] = {}
        self.headers: dict[str, str] = {}
        self.log: list[Request] = []

    @property
    def asked(self) -> list[str]:
        return [request.path for request in self.log]


def serve(handler: Handler, *, cut: int | None = None) -> None:
    server = handler.server
    if handler.path not in server.files:
        handler.answer(404, b"not here", {})
        return
    body = server.files[handler.path]
    if not (wanted := handler.headers.get("Range")):
        handler.answer(200, body, server.headers, stop_after=cut)
        return
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    span = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
    handler.answer(206, body[start:], {**server.headers, **span}, stop_after=cut)


def cut_after(count: int) -> Act:
    """Announce all that was asked for, send `count` bytes, hang up."""
    return lambda handler: serve(handler, cut=count)


def cut_unannounced(count: int) -> Act:
    """As `cut_after`, without a Content-Length by which the client could notice."""

    def act(handler: Handler) -> None:
        body = handler.server.files[handler.path]
        handler.answer(200, body, {**handler.server.headers, "Content-Length": ""}, stop_after=count)

    return act


def say(status: int, body: bytes = b"", **headers: str) -> Act:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(status, body, named)


def ignore_range(handler: Handler) -> None:
    handler.answer(200, handler.server.files[handler.path], handler.server.headers)


def in_chunks(*pieces: bytes) -> Act:
    """Send the pieces with chunked transfer encoding."""

    def act(handler: Handler) -> None:
        handler.answer(200, b"", {"Content-Length": "", "Transfer-Encoding": "chunked"})
        for piece in (*pieces, b""):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            handler.wfile.flush()

    return act


@contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        yield one


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each wait before another attempt would have been; none is waited."""
    waits: list[float] = []
    monkeypatch.setattr("pipeline.network.Network.sleep", lambda network, seconds: waits.append(seconds))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    return waits


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def zstd(size: int = 1000, seed: int = 0) -> bytes:
    """A zstd file of about `size` bytes."""
    return zstandard.ZstdCompressor().compress(noise(size, seed))


def fetch(root: Path, source: Source) -> Downloaded:
    return download(root, source, Silent())


def pile(server: Server, shards: str = "0,val", **environment: str) -> Source:
    return sources.resolve("pile", shards=shards, mirror=server.url, environment=environment)


def page(server: Server, path: str) -> Source:
    """The file at `path` of the server, as a URL that a person gives."""
    return sources.resolve(server.url + path, environment={})


def refuse(root: Path, source: Source, error: type[InkstoneError], code: int, match: str | None = None) -> None:
    """The download fails as said, and nothing is kept under a file's name or pinned."""
    with pytest.raises(error, match=match) as caught:
        fetch(root, source)
    assert type(caught.value) is error
    assert caught.value.exit_code == code
    folder = raw.folder(root, source.name)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.parametrize("layout", [HUB_FOLDER, ""], ids=["the hub's layout", "flat"])
def test_the_pile_comes_from_a_mirror_of_either_layout(root: Path, server: Server, layout: str) -> None:
    contents = {f"train/{n:02d}.jsonl.zst": zstd(seed=n) for n in range(3)} | {"val.jsonl.zst": zstd(seed=9)}
    server.files.update({f"{layout}/{name}": data for name, data in contents.items()})
    done = fetch(root, pile(server, "0-2,val"))
    assert (done.result, done.fetched, done.unchanged) == ("built", 4, 0)
    assert done.bytes == sum(len(data) for data in contents.values())
    assert {name: (root / "raw" / "pile" / name).read_bytes() for name in contents} == contents
    pinned = raw.read_lock(root, "pile")
    assert {name: (pin.size, pin.sha256) for name, pin in pinned.items()} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()
    }
    assert pinned["val.jsonl.zst"].split == "val"
    assert pinned["val.jsonl.zst"].origin == f"{server.url}{layout}/val.jsonl.zst"


def test_a_second_download_asks_the_server_nothing(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(), "/val.jsonl.zst": zstd()})
    fetch(root, pile(server))
    server.log.clear()
    again = fetch(root, pile(server))
    assert (again.result, again.fetched, again.unchanged, again.bytes) == ("unchanged", 0, 2, 0)
    assert server.log == []


def test_shards_come_one_after_another_into_one_cache(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(), "/val.jsonl.zst": zstd()})
    fetch(root, pile(server, "0"))
    server.log.clear()
    assert fetch(root, pile(server, "0,val")).fetched == 1
    assert server.asked == [f"{HUB_FOLDER}/val.jsonl.zst", "/val.jsonl.zst"]
    assert sorted(raw.read_lock(root, "pile")) == ["train/00.jsonl.zst", "val.jsonl.zst"]


def test_a_file_damaged_or_deleted_in_the_cache_is_fetched_again(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(seed=1), "/val.jsonl.zst": zstd(seed=2)})
    fetch(root, pile(server))
    os.truncate(root / "raw" / "pile" / "train" / "00.jsonl.zst", 10)
    assert fetch(root, pile(server)).fetched == 1
    (root / "raw" / "pile" / "val.jsonl.zst").unlink()
    assert fetch(root, pile(server)).fetched == 1
    assert (root / "raw" / "pile" / "train" / "00.jsonl.zst").read_bytes() == zstd(seed=1)


def test_a_plan_says_what_is_there_and_asks_nothing(root: Path, server: Server) -> None:
    server.files["/train/00.jsonl.zst"] = zstd()
    fetch(root, pile(server, "0"))
    server.log.clear()
    first = f"{server.url}{HUB_FOLDER}"
    assert plan(root, pile(server)) == [
        ("train/00.jsonl.zst", f"{first}/train/00.jsonl.zst", True),
        ("val.jsonl.zst", f"{first}/val.jsonl.zst", False),
    ]
    assert server.log == []


def test_what_came_before_an_error_is_kept_and_pinned(root: Path, server: Server) -> None:
    server.files["/train/00.jsonl.zst"] = zstd()
    with pytest.raises(RemoteGone):
        download(root, pile(server, "0,1"), Silent(), jobs=1)
    assert list(raw.read_lock(root, "pile")) == ["train/00.jsonl.zst"]
    server.files["/train/01.jsonl.zst"] = zstd()
    server.log.clear()
    assert fetch(root, pile(server, "0,1")).fetched == 1
    assert not any("00" in path for path in server.asked)


def test_a_transfer_cut_half_way_goes_on_where_it_stopped(root: Path, server: Server) -> None:
    data = zstd(4 * MIB)
    server.files["/a.jsonl.zst"] = data
    server.scripts["/a.jsonl.zst"] = [cut_after(len(data) // 2)]
    assert fetch(root, page(server, "/a.jsonl.zst")).bytes == len(data)
    assert (root / "raw" / "a" / "a.jsonl.zst").read_bytes() == data
    first, second = server.log
    assert first.range == ""
    assert MIB <= int(second.range.removeprefix("bytes=").removesuffix("-")) <= len(data) // 2


def test_a_transfer_cut_many_times_goes_on_as_long_as_bytes_come(root: Path, server: Server) -> None:
    data = noise(9 * MIB)
    server.files["/a.txt"] = data
    server.scripts["/a.txt"] = [cut_after(MIB + 1)] * 8
    fetch(root, page(server, "/a.txt"))
    assert (root / "raw" / "a" / "a.txt").read_bytes() == data
    assert len(server.log) == 9


def test_a_transfer_cut_every_half_mebibyte_loses_none_of_it(root: Path, server: Server) -> None:
    data = noise(4 * MIB)
    server.files["/a.txt"] = data
    server.scripts["/a.txt"] = [cut_after(MIB // 2)] * 8
    fetch(root, page(server, "/a.txt"))
    assert (root / "raw" / "a" / "a.txt").read_bytes() == data
    assert [request.range for request in server.log[1:]] == [f"bytes={n * MIB // 2}-" for n in range(1, 8)]


def test_a_transfer_that_never_brings_a_byte_ends_with_try_again(root: Path, server: Server, naps: list[float]) -> None:
    server.files["/a.txt"] = noise(1000)
    server.scripts["/a.txt"] = [cut_after(0)] * 20
    refuse(root, page(server, "/a.txt"), TryAgain, 75)
    assert 2 < len(server.log) < 10
    assert naps == sorted(naps)


def test_no_server_at_all_ends_with_try_again(root: Path, server: Server) -> None:
    refuse(root, sources.resolve("http://127.0.0.1:1/a.txt", environment={}), TryAgain, 75)


def test_a_server_that_ignores_the_range_is_taken_from_the_start(root: Path, server: Server) -> None:
    data = noise(3 * MIB)
    server.files["/a.txt"] = data
    server.scripts["/a.txt"] = [cut_after(2 * MIB), ignore_range]
    fetch(root, page(server, "/a.txt"))
    assert (root / "raw" / "a" / "a.txt").read_bytes() == data
    assert [bool(request.range) for request in server.log] == [False, True]


def test_an_answer_with_another_range_than_asked_for_is_never_appended(root: Path, server: Server) -> None:
    data = noise(3 * MIB)
    server.files["/a.txt"] = data
    for span in ("bytes 5-9/10", ""):
        server.scripts["/a.txt"] = [cut_after(2 * MIB), say(206, b"other", Content_Range=span)]
        fetch(root, page(server, "/a.txt"))
        assert (root / "raw" / "a" / "a.txt").read_bytes() == data
        (root / "raw" / "a" / "a.txt").unlink()


def test_a_file_replaced_during_the_transfer_is_never_a_mix_of_two(root: Path, server: Server) -> None:
    old, new = noise(3 * MIB, seed=1), noise(4 * MIB, seed=2)
    server.files["/a.txt"] = old
    server.headers["ETag"] = '"old"'

    def replace_then_cut(handler: Handler) -> None:
        serve(handler, cut=2 * MIB)
        server.files["/a.txt"] = new
        server.headers["ETag"] = '"new"'

    server.scripts["/a.txt"] = [replace_then_cut]
    fetch(root, page(server, "/a.txt"))
    assert (root / "raw" / "a" / "a.txt").read_bytes() == new


def test_a_busy_server_is_asked_again_when_it_says(root: Path, server: Server, naps: list[float]) -> None:
    server.files["/a.txt"] = b"text"
    server.scripts["/a.txt"] = [say(503), say(429, Retry_After="7"), say(408), say(500, Retry_After="9999")]
    fetch(root, page(server, "/a.txt"))
    assert (root / "raw" / "a" / "a.txt").read_bytes() == b"text"
    assert len(server.log) == 5
    assert 7 in naps
    assert max(naps) == 60


def test_a_file_that_no_url_has_is_gone(root: Path, server: Server) -> None:
    refuse(root, pile(server, "0"), RemoteGone, 69, match="404")
    assert server.asked == [f"{HUB_FOLDER}/train/00.jsonl.zst", "/train/00.jsonl.zst"]


def test_a_file_that_is_gone_says_so_at_once(root: Path, server: Server, naps: list[float]) -> None:
    server.scripts["/a.txt"] = [say(410)]
    refuse(root, page(server, "/a.txt"), RemoteGone, 69, match="410")
    assert naps == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_token_is_not_asked_again(root: Path, server: Server, status: int) -> None:
    server.scripts[f"{HUB_FOLDER}/val.jsonl.zst"] = [say(status)]
    refuse(root, pile(server, "val"), NotPermitted, 77, match="set HF_TOKEN")
    assert len(server.log) == 1


@pytest.mark.parametrize("status", [400, 418, 204])
def test_an_answer_of_no_known_meaning_is_refused(root: Path, server: Server, status: int) -> None:
    server.scripts["/a.txt"] = [say(status)]
    refuse(root, page(server, "/a.txt"), ProtocolBroken, 76, match=str(status))


@pytest.mark.parametrize("body", [b"<html>Log in to the hotel's network</html>", b"\x28\xb5\x2f\xfe", b"("])
def test_what_does_not_begin_like_zstd_is_not_taken_for_a_shard(root: Path, server: Server, body: bytes) -> None:
    server.files[f"{HUB_FOLDER}/val.jsonl.zst"] = body
    refuse(root, pile(server, "val"), TryAgain, 75, match="not a zstd file")


def test_an_empty_answer_is_not_taken_for_a_shard(root: Path, server: Server) -> None:
    server.files[f"{HUB_FOLDER}/val.jsonl.zst"] = b""
    refuse(root, pile(server, "val"), TryAgain, 75)


def test_a_chunked_answer_is_taken_whole(root: Path, server: Server) -> None:
    data = zstd(5000)
    server.scripts["/a.jsonl.zst"] = [in_chunks(data[:1000], data[1000:])]
    fetch(root, page(server, "/a.jsonl.zst"))
    assert (root / "raw" / "a" / "a.jsonl.zst").read_bytes() == data


def test_a_chunked_answer_may_begin_with_a_short_chunk(root: Path, server: Server) -> None:
    data = zstd(5000)
    server.scripts["/a.jsonl.zst"] = [in_chunks(data[:2], data[2:])]
    fetch(root, page(server, "/a.jsonl.zst"))
    assert (root / "raw" / "a" / "a.jsonl.zst").read_bytes() == data


def linked(data: bytes) -> dict[str, str]:
    """What the hub says of a file before it sends it."""
    return {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}


def test_another_content_than_the_hub_promised_is_refused_after_a_second_try(root: Path, server: Server) -> None:
    promised, sent = zstd(seed=1), zstd(seed=2)
    server.files[f"{HUB_FOLDER}/val.jsonl.zst"] = sent
    server.headers.update(linked(promised))
    assert len(sent) == len(promised)
    refuse(root, pile(server, "val"), BadData, 65, match="nothing was kept")
    assert len(server.log) == 2


def test_a_transfer_damaged_once_is_mended_by_a_second(root: Path, server: Server) -> None:
    data = zstd(seed=1)
    server.files["/a.jsonl.zst"] = data
    server.headers.update(linked(data))
    server.scripts["/a.jsonl.zst"] = [lambda handler: handler.answer(200, zstd(seed=2), linked(data))]
    fetch(root, page(server, "/a.jsonl.zst"))
    assert (root / "raw" / "a" / "a.jsonl.zst").read_bytes() == data


def test_a_cut_without_content_length_is_seen_by_the_size_that_the_hub_promised(root: Path, server: Server) -> None:
    data = zstd(3 * MIB)
    server.files["/a.jsonl.zst"] = data
    server.headers.update(linked(data))
    server.scripts["/a.jsonl.zst"] = [cut_unannounced(2 * MIB)]
    fetch(root, page(server, "/a.jsonl.zst"))
    assert (root / "raw" / "a" / "a.jsonl.zst").read_bytes() == data
    assert server.log[1].range == f"bytes={2 * MIB}-"


def test_a_cut_without_any_promise_is_seen_by_the_zstd_frame(root: Path, server: Server) -> None:
    server.files["/a.jsonl.zst"] = zstd(3 * MIB)
    server.scripts["/a.jsonl.zst"] = [cut_unannounced(2 * MIB)]
    fetch(root, page(server, "/a.jsonl.zst"))
    assert (root / "raw" / "a" / "a.jsonl.zst").read_bytes() == zstd(3 * MIB)


def test_the_hub_is_believed_though_it_sends_one_elsewhere(root: Path, server: Server) -> None:
    data = zstd(seed=1)
    server.files["/cdn/0123"] = zstd(seed=2)
    here = f"{HUB_FOLDER}/val.jsonl.zst"

    def send_on(handler: Handler) -> None:
        handler.answer(302, b"", {"Location": "/cdn/0123", **linked(data)})

    server.scripts[here] = [send_on] * 3
    refuse(root, pile(server, "val"), BadData, 65)
    server.files["/cdn/0123"] = data
    assert fetch(root, pile(server, "val")).result == "built"


def test_a_server_that_compresses_on_the_way_is_refused(root: Path, server: Server) -> None:
    server.files["/a.jsonl.zst"] = zstd()
    server.headers["Content-Encoding"] = "gzip"
    refuse(root, page(server, "/a.jsonl.zst"), ProtocolBroken, 76, match="compresses on the way")
    assert server.log[0].headers["Accept-Encoding"] == "identity"


def test_another_content_than_was_pinned_is_refused(root: Path, server: Server) -> None:
    server.files["/a.txt"] = b"as it was"
    fetch(root, page(server, "/a.txt"))
    pinned = raw.read_lock(root, "a")
    (root / "raw" / "a" / "a.txt").unlink()
    server.files["/a.txt"] = b"as it is"
    with pytest.raises(InkstoneError):
        fetch(root, page(server, "/a.txt"))
    assert raw.read_lock(root, "a") == pinned
    assert not (root / "raw" / "a" / "a.txt").exists()


def test_a_file_that_changed_upstream_since_it_was_pinned_is_a_decision_for_a_person(
    root: Path, server: Server
) -> None:
    server.files["/a.txt"] = b"as it was"
    fetch(root, page(server, "/a.txt"))
    (root / "raw" / "a" / "a.txt").unlink()
    server.files["/a.txt"] = b"as it is"
    with pytest.raises(UpstreamChanged):
        fetch(root, page(server, "/a.txt"))


def test_a_promise_of_the_server_does_not_move_the_pin(root: Path, server: Server) -> None:
    server.files["/a.txt"] = b"as it was"
    fetch(root, page(server, "/a.txt"))
    (root / "raw" / "a" / "a.txt").unlink()
    server.files["/a.txt"] = b"as it is"
    server.headers.update(linked(b"as it is"))
    with pytest.raises(UpstreamChanged):
        fetch(root, page(server, "/a.txt"))


def test_two_urls_that_end_alike_are_two_files(root: Path, server: Server) -> None:
    server.files.update({"/one/data.txt": b"one", "/other/data.txt": b"other"})
    fetch(root, page(server, "/one/data.txt"))
    done = fetch(root, page(server, "/other/data.txt"))
    assert (done.path / done.names[0]).read_bytes() == b"other"


def test_a_local_file_is_copied_and_copied_anew_when_it_changed(root: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("第一回")
    source = sources.resolve(str(book), environment={})
    assert fetch(root, source).result == "built"
    assert fetch(root, source).result == "unchanged"
    copied = root / "raw" / "book" / "book.txt"
    assert copied.read_text() == "第一回"
    book.write_text("第二回")
    os.utime(book, ns=(1, 1))
    assert fetch(root, source).result == "built"
    assert copied.read_text() == "第二回"
    assert fetch(root, source).result == "unchanged"


def test_a_local_copy_damaged_in_the_cache_is_copied_anew(root: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("第一回")
    source = sources.resolve(str(tmp_path / "book.txt"), environment={})
    fetch(root, source)
    (root / "raw" / "book" / "book.txt").write_text("第三回")
    os.utime(root / "raw" / "book" / "book.txt", ns=(1, 1))
    assert fetch(root, source).result == "built"
    assert (root / "raw" / "book" / "book.txt").read_text() == "第一回"


def test_a_local_folder_keeps_its_shape(root: Path, tmp_path: Path) -> None:
    (tmp_path / "books" / "deep").mkdir(parents=True)
    (tmp_path / "books" / "a.txt").write_text("甲")
    (tmp_path / "books" / "deep" / "b.txt").write_text("乙")
    done = fetch(root, sources.resolve(str(tmp_path / "books"), environment={}))
    assert done.names == ("a.txt", "deep/b.txt")
    assert (done.path / "deep" / "b.txt").read_text() == "乙"


def test_a_copy_of_another_cache_is_downloaded_without_its_lock_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("甲")
    fetch(root, sources.resolve(str(tmp_path / "books"), environment={}))
    source = sources.resolve(str(root / "raw" / "books"), environment={})
    fetch(tmp_path / "elsewhere", source)
    assert fetch(tmp_path / "elsewhere", source).result == "unchanged"


def test_what_a_kill_left_is_gone_after_the_next_download(root: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("第一回")
    folder = root / "raw" / "book"
    folder.mkdir(parents=True)
    (folder / f"{TEMPORARY}book.txt.0badcafe").write_text("第")
    fetch(root, sources.resolve(str(tmp_path / "book.txt"), environment={}))
    assert sorted(os.listdir(folder)) == [".lock", "book.txt", "sources.lock.json"]


@pytest.mark.parametrize("name", ["../x.txt", "a/../../x.txt", "/tmp/x.txt"])
def test_a_name_that_leads_out_of_the_cache_is_refused_before_anything(
    root: Path, server: Server, tmp_path: Path, name: str
) -> None:
    source = Source("book", (SourceFile("fine.txt", (f"{server.url}/x",)), SourceFile(name, (f"{server.url}/x",))))
    with pytest.raises(BadConfig, match="leads out of the cache") as caught:
        fetch(root, source)
    assert caught.value.exit_code == 78
    assert server.log == []
    assert list(tmp_path.iterdir()) == []


def test_one_source_is_downloaded_by_one_process_at_a_time(root: Path, server: Server) -> None:
    server.files["/a.txt"] = b"text"
    with lock(root / "raw" / "a" / ".lock"), pytest.raises(TryAgain) as caught:
        fetch(root, page(server, "/a.txt"))
    assert caught.value.exit_code == 75
    assert server.log == []


def test_the_token_is_sent_where_there_is_one(root: Path, server: Server) -> None:
    server.files["/val.jsonl.zst"] = zstd()
    fetch(root, pile(server, "val", HF_TOKEN="hf_secret"))
    assert {request.headers.get("Authorization") for request in server.log} == {"Bearer hf_secret"}


def test_without_a_token_nothing_is_sent(
    root: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.files["/val.jsonl.zst"] = zstd()
    fetch(root, pile(server, "val"))
    assert not any("Authorization" in request.headers for request in server.log)


def test_the_token_does_not_follow_to_another_host(root: Path, server: Server) -> None:
    with running() as other:
        other.files["/cdn"] = zstd()
        elsewhere = other.url.replace("127.0.0.1", "localhost") + "/cdn"
        server.scripts[f"{HUB_FOLDER}/val.jsonl.zst"] = [say(302, Location=elsewhere)]
        fetch(root, pile(server, "val", HF_TOKEN="hf_secret"))
        assert "Authorization" in server.log[0].headers
        assert [request.headers.get("Authorization") for request in other.log] == [None]


def test_the_token_is_in_no_file_of_the_cache(root: Path, server: Server) -> None:
    server.files["/val.jsonl.zst"] = zstd()
    fetch(root, pile(server, "val", HF_TOKEN="hf_secret"))
    kept = [path.read_bytes() for path in (root / "raw").rglob("*") if path.is_file()]
    assert not any(b"hf_secret" in data for data in kept)
    assert json.loads((root / "raw" / "pile" / "sources.lock.json").read_bytes())


def test_a_token_that_cannot_be_a_header_is_not_shown(root: Path, server: Server) -> None:
    with pytest.raises(InkstoneError) as caught:
        fetch(root, pile(server, "val", HF_TOKEN="hf_secret\n"))
    assert "hf_secret" not in str(caught.value)


def test_a_password_in_a_url_is_not_shown(root: Path, server: Server) -> None:
    url = server.url.replace("http://", "http://me:secret@") + "/a.txt"
    with pytest.raises(RemoteGone) as caught:
        fetch(root, sources.resolve(url, environment={}))
    assert "secret" not in str(caught.value)


def test_a_redirect_to_a_local_file_is_refused(root: Path, server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    server.scripts["/a.txt"] = [say(302, Location=f"file://{tmp_path}/secret.txt")] * 10
    refuse(root, page(server, "/a.txt"), ProtocolBroken, 76)
