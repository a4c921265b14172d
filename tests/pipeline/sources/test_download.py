"""Downloads from a server that truncates, lies, redirects and refuses: complete files or errors."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.errors import (
    BadConfig,
    BadData,
    InkstoneError,
    NotPermitted,
    ProtocolBroken,
    RemoteGone,
    StorageFailed,
    TryAgain,
    UpstreamChanged,
)
from pipeline.runtime.progress import SilentProgress
from pipeline.sources import cache, catalogue, partial
from pipeline.sources.catalogue import Source, SourceFile
from pipeline.sources.download import DownloadResult, check_upstream, download, list_files
from pipeline.sources.http import Network
from pipeline.sources.walk import LOCK_FILE
from pipeline.store.files import TEMPORARY
from pipeline.store.locks import lock
from tests.support import bad_server, faults
from tests.support.bad_server import HUB_FOLDER, Handler, Server, cut_after, hub_headers, respond, send_chunked
from tests.support.faults import Command

MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[Server]:
    with bad_server.running_server() as running:
        yield running


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Durations of the waits between attempts, which are skipped."""
    durations: list[float] = []
    monkeypatch.setattr(
        "pipeline.sources.http.Network.sleep", lambda network, seconds, where: durations.append(seconds)
    )
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    return durations


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def zstd(size: int = 1000, seed: int = 0) -> bytes:
    """Return a zstd file of about `size` bytes."""
    return zstandard.ZstdCompressor().compress(noise(size, seed))


def fetch(root: Path, source: Source, **options: Any) -> DownloadResult:
    return download(root, source, SilentProgress(), **options)


def pile(server: Server, shards: str = "0,val", **environment: str) -> Source:
    return catalogue.resolve_source("pile", shards=shards, mirror=server.url, environment=environment)


def page(server: Server, path: str) -> Source:
    """Return the file at `path` of the server as a source named by its URL."""
    return catalogue.resolve_source(server.url + path, environment={})


def refuse(root: Path, source: Source, error: type[InkstoneError], code: int, match: str | None = None) -> None:
    """Assert that the download raises `error` and leaves neither files nor pins."""
    with pytest.raises(error, match=match) as caught:
        fetch(root, source)
    assert type(caught.value) is error
    assert caught.value.exit_code == code
    folder = cache.source_folder(root, source.name)
    remaining = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in remaining} <= {".lock", ".origin", partial.QUARANTINE}


@pytest.mark.parametrize("layout", [HUB_FOLDER, ""], ids=["the hub's layout", "flat"])
def test_pile_is_fetched_from_a_mirror_of_either_layout(root: Path, server: Server, layout: str) -> None:
    contents = {f"train/{n:02d}.jsonl.zst": zstd(seed=n) for n in range(3)} | {"val.jsonl.zst": zstd(seed=9)}
    server.files.update({f"{layout}/{name}": data for name, data in contents.items()})
    result = fetch(root, pile(server, "0-2,val"))
    assert (result.result, result.fetched, result.unchanged) == ("built", 4, 0)
    assert result.bytes == sum(len(data) for data in contents.values())
    assert {name: (root / "raw" / "pile" / name).read_bytes() for name in contents} == contents
    pinned = cache.read_lock_file(root, "pile")
    assert {name: (pin.size, pin.sha256) for name, pin in pinned.items()} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()
    }
    assert pinned["val.jsonl.zst"].split == "val"
    assert pinned["val.jsonl.zst"].origin == f"{server.url}{layout}/val.jsonl.zst"


def test_second_download_sends_no_requests(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(), "/val.jsonl.zst": zstd()})
    fetch(root, pile(server))
    server.log.clear()
    second = fetch(root, pile(server))
    assert (second.result, second.fetched, second.unchanged, second.bytes) == ("unchanged", 0, 2, 0)
    assert server.log == []


def test_shards_downloaded_separately_share_a_cache(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(), "/val.jsonl.zst": zstd()})
    fetch(root, pile(server, "0"))
    server.log.clear()
    assert fetch(root, pile(server, "0,val")).fetched == 1
    assert server.requested_paths == ["/val.jsonl.zst"]
    assert sorted(cache.read_lock_file(root, "pile")) == ["train/00.jsonl.zst", "val.jsonl.zst"]


def test_damaged_or_deleted_cached_file_is_fetched_again(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(seed=1), "/val.jsonl.zst": zstd(seed=2)})
    fetch(root, pile(server))
    os.truncate(root / "raw" / "pile" / "train" / "00.jsonl.zst", 10)
    assert fetch(root, pile(server)).fetched == 1
    (root / "raw" / "pile" / "val.jsonl.zst").unlink()
    assert fetch(root, pile(server)).fetched == 1
    assert (root / "raw" / "pile" / "train" / "00.jsonl.zst").read_bytes() == zstd(seed=1)


def test_plan_lists_cached_files_without_requests(root: Path, server: Server) -> None:
    server.files["/train/00.jsonl.zst"] = zstd()
    fetch(root, pile(server, "0"))
    server.log.clear()
    first = f"{server.url}{HUB_FOLDER}"
    assert list_files(root, pile(server)) == [
        ("train/00.jsonl.zst", f"{first}/train/00.jsonl.zst", True),
        ("val.jsonl.zst", f"{first}/val.jsonl.zst", False),
    ]
    assert server.log == []


def test_files_fetched_before_an_error_are_pinned(root: Path, server: Server) -> None:
    server.files["/train/00.jsonl.zst"] = zstd()
    with pytest.raises(RemoteGone):
        download(root, pile(server, "0,1"), SilentProgress(), jobs=1)
    assert list(cache.read_lock_file(root, "pile")) == ["train/00.jsonl.zst"]
    server.files["/train/01.jsonl.zst"] = zstd()
    server.log.clear()
    assert fetch(root, pile(server, "0,1")).fetched == 1
    assert not any("00" in path for path in server.requested_paths)


def test_transfer_interrupted_every_half_mebibyte_is_complete(root: Path, server: Server) -> None:
    data = noise(4 * MIB)
    server.files["/a.txt"] = data
    server.scripts["/a.txt"] = [cut_after(MIB // 2)] * 8
    fetch(root, page(server, "/a.txt"))
    assert (root / "raw" / "a" / "a.txt").read_bytes() == data
    assert [request.range for request in server.gets[1:]] == [f"bytes={n * MIB // 2}-" for n in range(1, 8)]


def test_transfer_without_any_bytes_raises_try_again(root: Path, server: Server, waits: list[float]) -> None:
    server.files["/a.txt"] = noise(1000)
    server.scripts["/a.txt"] = [cut_after(0)] * 20
    refuse(root, page(server, "/a.txt"), TryAgain, 75)
    assert 2 < len(server.gets) < 10
    assert waits == sorted(waits)


def test_unreachable_server_raises_try_again(root: Path, server: Server) -> None:
    refuse(root, catalogue.resolve_source("http://127.0.0.1:1/a.txt", environment={}), TryAgain, 75)


def test_file_missing_at_every_url_raises_remote_gone(root: Path, server: Server) -> None:
    refuse(root, pile(server, "0"), RemoteGone, 69, match="404")
    assert [request.path for request in server.log] == [f"{HUB_FOLDER}/train/00.jsonl.zst", "/train/00.jsonl.zst"]
    assert not (root / "raw").exists()


def test_missing_remote_file_is_not_requested_again(root: Path, server: Server, waits: list[float]) -> None:
    server.scripts["/a.txt"] = [respond(410)]
    refuse(root, page(server, "/a.txt"), RemoteGone, 69, match="410")
    assert waits == []


@pytest.mark.parametrize("status", [401, 403])
def test_unauthorized_request_is_not_retried(root: Path, server: Server, status: int) -> None:
    server.scripts[f"{HUB_FOLDER}/val.jsonl.zst"] = [respond(status)]
    refuse(root, pile(server, "val"), NotPermitted, 77, match="set HF_TOKEN")
    assert len(server.gets) == 1


@pytest.mark.parametrize("status", [400, 418, 204])
def test_unexpected_status_raises_protocol_broken(root: Path, server: Server, status: int) -> None:
    server.scripts["/a.txt"] = [respond(status)]
    refuse(root, page(server, "/a.txt"), ProtocolBroken, 76, match=str(status))


@pytest.mark.parametrize("body", [b"<html>Log in to the hotel's network</html>", b"\x28\xb5\x2f\xfe", b"("])
def test_response_without_zstd_magic_is_not_accepted_as_a_shard(root: Path, server: Server, body: bytes) -> None:
    server.files[f"{HUB_FOLDER}/val.jsonl.zst"] = body
    refuse(root, pile(server, "val"), TryAgain, 75, match="data that is not zstd")


def test_empty_response_is_not_accepted_as_a_shard(root: Path, server: Server) -> None:
    server.files[f"{HUB_FOLDER}/val.jsonl.zst"] = b""
    refuse(root, pile(server, "val"), TryAgain, 75)


def test_chunked_response_is_complete(root: Path, server: Server) -> None:
    data = zstd(5000)
    server.scripts["/a.jsonl.zst"] = [send_chunked(data[:1000], data[1000:])]
    fetch(root, page(server, "/a.jsonl.zst"))
    assert (root / "raw" / "a" / "a.jsonl.zst").read_bytes() == data


def test_chunked_response_may_begin_with_a_short_chunk(root: Path, server: Server) -> None:
    data = zstd(5000)
    server.scripts["/a.jsonl.zst"] = [send_chunked(data[:2], data[2:])]
    fetch(root, page(server, "/a.jsonl.zst"))
    assert (root / "raw" / "a" / "a.jsonl.zst").read_bytes() == data


def test_hash_published_by_the_hub_applies_to_the_redirect_target(root: Path, server: Server) -> None:
    data = zstd(seed=1)
    server.files["/cdn/0123"] = zstd(seed=2)
    path = f"{HUB_FOLDER}/val.jsonl.zst"

    def send_on(handler: Handler) -> None:
        handler.answer(302, b"", {"Location": "/cdn/0123", **hub_headers(data)})

    server.scripts[path] = [send_on] * 3
    refuse(root, pile(server, "val"), BadData, 65)
    server.files["/cdn/0123"] = data
    assert fetch(root, pile(server, "val")).result == "built"


def test_content_other_than_the_pinned_is_refused(root: Path, server: Server) -> None:
    server.files["/a.txt"] = b"as it was"
    fetch(root, page(server, "/a.txt"))
    pinned = cache.read_lock_file(root, "a")
    (root / "raw" / "a" / "a.txt").unlink()
    server.files["/a.txt"] = b"as it is"
    with pytest.raises(InkstoneError):
        fetch(root, page(server, "/a.txt"))
    assert cache.read_lock_file(root, "a") == pinned
    assert not (root / "raw" / "a" / "a.txt").exists()


def test_file_changed_upstream_raises_upstream_changed(root: Path, server: Server) -> None:
    server.files["/a.txt"] = b"as it was"
    fetch(root, page(server, "/a.txt"))
    (root / "raw" / "a" / "a.txt").unlink()
    server.files["/a.txt"] = b"as it is"
    with pytest.raises(UpstreamChanged):
        fetch(root, page(server, "/a.txt"))


def test_published_hash_does_not_change_the_pin(root: Path, server: Server) -> None:
    server.files["/a.txt"] = b"as it was"
    fetch(root, page(server, "/a.txt"))
    (root / "raw" / "a" / "a.txt").unlink()
    server.files["/a.txt"] = b"as it is"
    server.headers.update(hub_headers(b"as it is"))
    with pytest.raises(UpstreamChanged):
        fetch(root, page(server, "/a.txt"))


def test_two_urls_with_the_same_file_name_are_two_files(root: Path, server: Server) -> None:
    server.files.update({"/one/data.txt": b"one", "/other/data.txt": b"other"})
    fetch(root, page(server, "/one/data.txt"))
    result = fetch(root, page(server, "/other/data.txt"))
    assert (result.path / result.names[0]).read_bytes() == b"other"


def test_local_file_is_copied_again_after_a_change(root: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("第一回")
    source = catalogue.resolve_source(str(book), environment={})
    assert fetch(root, source).result == "built"
    assert fetch(root, source).result == "unchanged"
    copied = root / "raw" / "book" / "book.txt"
    assert copied.read_text() == "第一回"
    book.write_text("第二回")
    os.utime(book, ns=(1, 1))
    assert fetch(root, source).result == "built"
    assert copied.read_text() == "第二回"
    assert fetch(root, source).result == "unchanged"


def test_damaged_local_copy_is_copied_again(root: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("第一回")
    source = catalogue.resolve_source(str(tmp_path / "book.txt"), environment={})
    fetch(root, source)
    (root / "raw" / "book" / "book.txt").write_text("第三回")
    os.utime(root / "raw" / "book" / "book.txt", ns=(1, 1))
    assert fetch(root, source).result == "built"
    assert (root / "raw" / "book" / "book.txt").read_text() == "第一回"


def test_local_folder_keeps_its_layout(root: Path, tmp_path: Path) -> None:
    (tmp_path / "books" / "deep").mkdir(parents=True)
    (tmp_path / "books" / "a.txt").write_text("甲")
    (tmp_path / "books" / "deep" / "b.txt").write_text("乙")
    result = fetch(root, catalogue.resolve_source(str(tmp_path / "books"), environment={}))
    assert result.names == ("a.txt", "deep/b.txt")
    assert (result.path / "deep" / "b.txt").read_text() == "乙"


def test_copy_of_another_cache_excludes_its_lock_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("甲")
    fetch(root, catalogue.resolve_source(str(tmp_path / "books"), environment={}))
    source = catalogue.resolve_source(str(root / "raw" / "books"), environment={})
    fetch(tmp_path / "elsewhere", source)
    assert fetch(tmp_path / "elsewhere", source).result == "unchanged"


def test_temporaries_of_a_killed_process_are_removed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("第一回")
    folder = root / "raw" / "book"
    folder.mkdir(parents=True)
    (folder / f"{TEMPORARY}book.txt.0badcafe").write_text("第")
    fetch(root, catalogue.resolve_source(str(tmp_path / "book.txt"), environment={}))
    assert sorted(os.listdir(folder)) == [".lock", ".origin", "book.txt", "sources.lock.json"]


# Case 16: names


HOSTILE = ["../x.txt", "a/../../x.txt", "/tmp/x.txt", "..", ".", "", "a\0b.txt", "a\nb.txt", "\udc80.txt", "a/../x.txt"]
RESERVED = ["sources.lock.json", ".lock", ".origin", ".tmp.x.txt", "a/.trash.b/x.txt"]
TOO_LONG = ["x" * 300 + ".txt", "水" * 90 + ".txt", "a/" + "x" * 256 + "/b.txt"]


@pytest.mark.parametrize("name", HOSTILE + RESERVED + TOO_LONG)
def test_invalid_name_is_refused_before_any_request(root: Path, tmp_path: Path, server: Server, name: str) -> None:
    """Case 16."""
    good, evil = SourceFile("good.txt", (f"{server.url}/good.txt",)), SourceFile(name, (f"{server.url}/x",))
    source = Source("evil", (good, evil))
    server.files.update({"/x": b"evil", "/good.txt": b"good"})
    with pytest.raises(BadConfig) as caught:
        fetch(root, source)
    assert caught.value.exit_code == 78
    assert caught.value.hint
    assert len(caught.value.message) < 200
    assert server.log == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    ["/..", "/%2e%2e", "/a/%2e%2e%2fx/..", "/%2Fetc%2F", "/a%00b.txt", "/a%0Ab.txt", f"/{'x' * 300}.txt", "/.hidden"],
)
def test_url_without_a_file_name_is_refused_before_any_request(root: Path, server: Server, path: str) -> None:
    """Case 16."""
    run = Command(root, ("download", server.url + path)).run_forked()
    faults.assert_one_error(run, 78, [])
    assert server.log == []
    assert not root.exists()


@pytest.mark.parametrize("path", ["/a/..%2f..%2fx.txt", "/%2e%2e/%2e%2e/x.txt", "/a/../../x.txt"])
def test_only_the_last_name_of_a_url_is_used(path: str) -> None:
    """Case 16: the path before it never reaches the local disk."""
    source = catalogue.resolve_source(f"http://127.0.0.1:1{path}", environment={})
    assert (source.name, [file.name for file in source.files]) == ("x", ["x.txt"])


@pytest.mark.parametrize("name", ["../x.txt", "a/../../../x.txt", "/tmp/x.txt"])
def test_lock_file_with_a_path_outside_the_cache_raises_bad_data(root: Path, tmp_path: Path, name: str) -> None:
    """Case 16."""
    book = tmp_path / "a.txt"
    book.write_text("第一回", encoding="utf-8")
    fetch(root, catalogue.resolve_source(str(book), environment={}))
    pinned = cache.read_lock_file(root, "a")
    cache.write_lock_file(root, "a", {**pinned, name: pinned["a.txt"]})
    (root / "raw" / "x.txt").write_text("第一回", encoding="utf-8")
    run = Command(root, ("clean", "a")).run_forked()
    faults.assert_one_error(run, 65, [LOCK_FILE])
    assert not (root / "corpora").exists()


def test_recipe_source_outside_the_cache_is_refused(root: Path, tmp_path: Path, server: Server) -> None:
    """Case 16."""
    recipe = tmp_path / "evil.toml"
    recipe.write_text(f'name = "evil"\n[download]\nsource = "{server.url}/%2e%2e"\n')
    run = Command(root, ("refresh", recipe)).run_forked()
    faults.assert_one_error(run, 78, [])
    assert server.log == []


# Checks upstream, updates, and more than one process


def test_check_upstream_reports_status_and_writes_nothing(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(), "/val.jsonl.zst": zstd(2000)})
    fetch(root, pile(server, "0"))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    statuses = check_upstream(root, pile(server, "0,1,val"), Network())
    assert [(status.file.name, status.state, status.bytes) for status in statuses] == [
        ("train/00.jsonl.zst", "there", 0),
        ("train/01.jsonl.zst", "refused", 0),
        ("val.jsonl.zst", "new", len(zstd(2000))),
    ]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_update_fetches_and_pins_only_changed_files(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(seed=1), "/val.jsonl.zst": zstd(seed=2)})
    fetch(root, pile(server))
    before, old = cache.read_lock_file(root, "pile"), (root / "raw" / "pile" / "train" / "00.jsonl.zst").stat()
    server.files["/val.jsonl.zst"] = zstd(seed=3)
    server.log.clear()
    assert fetch(root, pile(server)).result == "unchanged"
    assert server.log == []
    result = fetch(root, pile(server), update=True)
    assert (result.fetched, result.unchanged, server.requested_paths) == (1, 1, ["/val.jsonl.zst"])
    after = cache.read_lock_file(root, "pile")
    assert after["val.jsonl.zst"].sha256 == hashlib.sha256(zstd(seed=3)).hexdigest()
    assert after["train/00.jsonl.zst"] == before["train/00.jsonl.zst"]
    status = (root / "raw" / "pile" / "train" / "00.jsonl.zst").stat()
    assert (status.st_ino, status.st_mtime_ns) == (old.st_ino, old.st_mtime_ns)
    assert fetch(root, pile(server), update=True).result == "unchanged"


@pytest.mark.parametrize(
    ("announces", "is_known"), [("hash", True), ("etag", True), ("nothing", True), ("etag", False)]
)
def test_shrunk_file_replaces_the_old_one_only_if_allowed(
    root: Path, server: Server, announces: str, is_known: bool
) -> None:
    server.announces, server.files["/a.txt"] = announces, b"all of the text"
    fetch(root, page(server, "/a.txt"))
    server.files["/a.txt"] = b"all"
    if not is_known:
        server.heads["/a.txt"] = [respond(200, ETag='"new"', Content_Length="")] * 9
        server.headers = {"ETag": '"new"'}
    with pytest.raises(UpstreamChanged, match="shrank from 15 to 3 bytes"):
        fetch(root, page(server, "/a.txt"), update=True)
    assert (root / "raw" / "a" / "a.txt").read_bytes() == b"all of the text"
    assert fetch(root, page(server, "/a.txt")).result == "unchanged"
    assert fetch(root, page(server, "/a.txt"), update=True, allow_shrink=True).fetched == 1
    assert (root / "raw" / "a" / "a.txt").read_bytes() == b"all"


def test_file_removed_upstream_is_kept_and_others_are_updated(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(seed=1), "/val.jsonl.zst": zstd(seed=2)})
    fetch(root, pile(server))
    del server.files["/train/00.jsonl.zst"]
    server.files["/val.jsonl.zst"] = zstd(seed=3)
    with pytest.raises(UpstreamChanged, match="was removed upstream") as caught:
        fetch(root, pile(server), update=True)
    assert caught.value.exit_code == 10
    assert (root / "raw" / "pile" / "train" / "00.jsonl.zst").read_bytes() == zstd(seed=1)
    assert (root / "raw" / "pile" / "val.jsonl.zst").read_bytes() == zstd(seed=3)


def test_hash_published_with_the_content_does_not_change_the_pin(root: Path, server: Server) -> None:
    server.announces, server.files["/a.txt"] = "hash", b"as it was"
    fetch(root, page(server, "/a.txt"))
    pinned = cache.read_lock_file(root, "a")
    (root / "raw" / "a" / "a.txt").unlink()
    server.files["/a.txt"], server.heads["/a.txt"] = b"as it is!", [respond(405)]
    with pytest.raises(UpstreamChanged):
        fetch(root, page(server, "/a.txt"))
    assert cache.read_lock_file(root, "a") == pinned


def test_leftover_state_of_a_finished_transfer_is_removed(root: Path, server: Server) -> None:
    server.files["/a.txt"] = b"text"
    fetch(root, page(server, "/a.txt"))
    state = root / "raw" / "a" / "a.txt.part.json"
    state.write_bytes(b"{}")
    assert fetch(root, page(server, "/a.txt")).result == "unchanged"
    assert not state.exists()


def test_one_source_is_downloaded_by_one_process_at_a_time(root: Path, server: Server) -> None:
    server.files["/a.txt"] = b"text"
    with lock(root / "raw" / "a" / ".lock"), pytest.raises(TryAgain) as caught:
        fetch(root, page(server, "/a.txt"))
    assert caught.value.exit_code == 75
    assert server.gets == []


def test_files_of_a_source_share_the_rate_limit(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(100_000, 1), "/val.jsonl.zst": zstd(100_000, 2)})
    start = time.monotonic()
    run = Command(root, ("download", "pile", "--shards", "0,val", "--mirror", server.url, "--limit-rate", "200k"))
    assert run.run().code == 0
    assert 0.8 < time.monotonic() - start < 5


@pytest.mark.parametrize("headers", [{}, {"ETag": '"one"'}], ids=["no ETag", "ETag"])
def test_body_without_end_stops_at_the_reserve_and_leaves_nothing(
    root: Path, server: Server, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    def endless(handler: Handler) -> None:
        handler.begin(200, headers)
        for _ in range(60):
            handler.send(b"a line\n" * (MIB // 7))

    monkeypatch.setattr(partial, "_CHECK_EVERY", MIB)
    monkeypatch.setattr(partial, "RESERVE", shutil.disk_usage(root.parent).free - 30 * MIB)
    server.announces = "nothing"
    server.files["/a.txt"], server.scripts["/a.txt"] = b"a line", [endless] * 9
    server.heads["/a.txt"] = [respond(405)]
    with pytest.raises(StorageFailed, match="needed"):
        fetch(root, catalogue.resolve_source(f"{server.url}/a.txt"))
    assert [path.name for path in (root / "raw" / "a").iterdir() if path.name.startswith("a.txt")] == []
