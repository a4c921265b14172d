"""Downloads from a server that cuts, lies, moves and refuses: whole files or errors, never anything between."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

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
from pipeline.runtime.progress import Silent
from pipeline.sources import cache, partial
from pipeline.sources import catalogue as sources
from pipeline.sources.catalogue import Source, SourceFile
from pipeline.sources.download import Downloaded, download, plan, survey
from pipeline.sources.http import Network
from pipeline.store.files import TEMPORARY
from pipeline.store.locks import lock
from tests.support import bad_server as badserver
from tests.support import faults
from tests.support.bad_server import HUB_FOLDER, Handler, Server, cut_after, in_chunks, linked, say
from tests.support.faults import Command

MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[Server]:
    with badserver.running() as one:
        yield one


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each wait before another attempt would have been; none is waited."""
    waits: list[float] = []
    monkeypatch.setattr("pipeline.sources.http.Network.sleep", lambda network, seconds, where: waits.append(seconds))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    return waits


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def zstd(size: int = 1000, seed: int = 0) -> bytes:
    """A zstd file of about `size` bytes."""
    return zstandard.ZstdCompressor().compress(noise(size, seed))


def fetch(root: Path, source: Source, **options: bool) -> Downloaded:
    return download(root, source, Silent(), **options)


def pile(server: Server, shards: str = "0,val", **environment: str) -> Source:
    return sources.resolve("pile", shards=shards, mirror=server.url, environment=environment)


def page(server: Server, path: str) -> Source:
    """The file at `path` of the server, as a URL that a person gives."""
    return sources.resolve(server.url + path, environment={})


def refuse(root: Path, source: Source, error: type[InkstoneError], code: int, match: str | None = None) -> None:
    """The download fails as said, and nothing is kept: under no file's name, and nothing is pinned."""
    with pytest.raises(error, match=match) as caught:
        fetch(root, source)
    assert type(caught.value) is error
    assert caught.value.exit_code == code
    folder = cache.folder(root, source.name)
    kept = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in kept} <= {".lock", partial.QUARANTINE}


@pytest.mark.parametrize("layout", [HUB_FOLDER, ""], ids=["the hub's layout", "flat"])
def test_the_pile_comes_from_a_mirror_of_either_layout(root: Path, server: Server, layout: str) -> None:
    contents = {f"train/{n:02d}.jsonl.zst": zstd(seed=n) for n in range(3)} | {"val.jsonl.zst": zstd(seed=9)}
    server.files.update({f"{layout}/{name}": data for name, data in contents.items()})
    done = fetch(root, pile(server, "0-2,val"))
    assert (done.result, done.fetched, done.unchanged) == ("built", 4, 0)
    assert done.bytes == sum(len(data) for data in contents.values())
    assert {name: (root / "raw" / "pile" / name).read_bytes() for name in contents} == contents
    pinned = cache.read_lock(root, "pile")
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
    assert server.asked == ["/val.jsonl.zst"]
    assert sorted(cache.read_lock(root, "pile")) == ["train/00.jsonl.zst", "val.jsonl.zst"]


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
    assert list(cache.read_lock(root, "pile")) == ["train/00.jsonl.zst"]
    server.files["/train/01.jsonl.zst"] = zstd()
    server.log.clear()
    assert fetch(root, pile(server, "0,1")).fetched == 1
    assert not any("00" in path for path in server.asked)


def test_a_transfer_cut_every_half_mebibyte_loses_none_of_it(root: Path, server: Server) -> None:
    data = noise(4 * MIB)
    server.files["/a.txt"] = data
    server.scripts["/a.txt"] = [cut_after(MIB // 2)] * 8
    fetch(root, page(server, "/a.txt"))
    assert (root / "raw" / "a" / "a.txt").read_bytes() == data
    assert [request.range for request in server.gets[1:]] == [f"bytes={n * MIB // 2}-" for n in range(1, 8)]


def test_a_transfer_that_never_brings_a_byte_ends_with_try_again(root: Path, server: Server, naps: list[float]) -> None:
    server.files["/a.txt"] = noise(1000)
    server.scripts["/a.txt"] = [cut_after(0)] * 20
    refuse(root, page(server, "/a.txt"), TryAgain, 75)
    assert 2 < len(server.gets) < 10
    assert naps == sorted(naps)


def test_no_server_at_all_ends_with_try_again(root: Path, server: Server) -> None:
    refuse(root, sources.resolve("http://127.0.0.1:1/a.txt", environment={}), TryAgain, 75)


def test_a_file_that_no_url_has_is_gone(root: Path, server: Server) -> None:
    refuse(root, pile(server, "0"), RemoteGone, 69, match="404")
    assert [request.path for request in server.log] == [f"{HUB_FOLDER}/train/00.jsonl.zst", "/train/00.jsonl.zst"]
    assert not (root / "raw").exists()  # and nothing was begun


def test_a_file_that_is_gone_says_so_at_once(root: Path, server: Server, naps: list[float]) -> None:
    server.scripts["/a.txt"] = [say(410)]
    refuse(root, page(server, "/a.txt"), RemoteGone, 69, match="410")
    assert naps == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_a_token_is_not_asked_again(root: Path, server: Server, status: int) -> None:
    server.scripts[f"{HUB_FOLDER}/val.jsonl.zst"] = [say(status)]
    refuse(root, pile(server, "val"), NotPermitted, 77, match="set HF_TOKEN")
    assert len(server.gets) == 1


@pytest.mark.parametrize("status", [400, 418, 204])
def test_an_answer_of_no_known_meaning_is_refused(root: Path, server: Server, status: int) -> None:
    server.scripts["/a.txt"] = [say(status)]
    refuse(root, page(server, "/a.txt"), ProtocolBroken, 76, match=str(status))


@pytest.mark.parametrize("body", [b"<html>Log in to the hotel's network</html>", b"\x28\xb5\x2f\xfe", b"("])
def test_what_does_not_begin_like_zstd_is_not_taken_for_a_shard(root: Path, server: Server, body: bytes) -> None:
    server.files[f"{HUB_FOLDER}/val.jsonl.zst"] = body
    refuse(root, pile(server, "val"), TryAgain, 75, match="data that is not zstd")


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


def test_another_content_than_was_pinned_is_refused(root: Path, server: Server) -> None:
    server.files["/a.txt"] = b"as it was"
    fetch(root, page(server, "/a.txt"))
    pinned = cache.read_lock(root, "a")
    (root / "raw" / "a" / "a.txt").unlink()
    server.files["/a.txt"] = b"as it is"
    with pytest.raises(InkstoneError):
        fetch(root, page(server, "/a.txt"))
    assert cache.read_lock(root, "a") == pinned
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


# 16: names


HOSTILE = ["../x.txt", "a/../../x.txt", "/tmp/x.txt", "..", ".", "", "a\0b.txt", "a\nb.txt", "\udc80.txt", "a/../x.txt"]
OUR_OWN = ["sources.lock.json", ".lock", ".tmp.x.txt", "a/.trash.b/x.txt"]
TOO_LONG = ["x" * 300 + ".txt", "水" * 90 + ".txt", "a/" + "x" * 256 + "/b.txt"]


@pytest.mark.parametrize("name", HOSTILE + OUR_OWN + TOO_LONG)
def test_case_16_a_name_that_cannot_be_is_refused_before_anything(
    root: Path, tmp_path: Path, server: Server, name: str
) -> None:
    good, evil = SourceFile("good.txt", (f"{server.url}/good.txt",)), SourceFile(name, (f"{server.url}/x",))
    source = Source("evil", (good, evil))
    server.files.update({"/x": b"evil", "/good.txt": b"good"})
    with pytest.raises(BadConfig) as caught:
        fetch(root, source)
    assert caught.value.exit_code == 78
    assert caught.value.hint
    assert len(caught.value.what) < 200
    assert server.log == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    ["/..", "/%2e%2e", "/a/%2e%2e%2fx/..", "/%2Fetc%2F", "/a%00b.txt", "/a%0Ab.txt", f"/{'x' * 300}.txt", "/.hidden"],
)
def test_case_16_a_url_that_ends_in_no_name_is_refused_before_anything(root: Path, server: Server, path: str) -> None:
    done = Command(root, ("download", server.url + path)).run_forked()
    faults.assert_one_error(done, 78, [])
    assert server.log == []
    assert not root.exists()


@pytest.mark.parametrize("path", ["/a/..%2f..%2fx.txt", "/%2e%2e/%2e%2e/x.txt", "/a/../../x.txt"])
def test_case_16_of_a_url_only_the_last_name_is_taken(path: str) -> None:
    """What stands before it is between the client and the server; it leads nowhere on this disk."""
    source = sources.resolve(f"http://127.0.0.1:1{path}", environment={})
    assert (source.name, [file.name for file in source.files]) == ("x", ["x.txt"])


@pytest.mark.parametrize("name", ["../x.txt", "a/../../../x.txt", "/tmp/x.txt"])
def test_case_16_a_lock_file_that_leads_out_of_the_cache_is_bad_data(root: Path, tmp_path: Path, name: str) -> None:
    book = tmp_path / "a.txt"
    book.write_text("第一回", encoding="utf-8")
    fetch(root, sources.resolve(str(book), environment={}))
    pinned = cache.read_lock(root, "a")
    cache.write_lock(root, "a", {**pinned, name: pinned["a.txt"]})
    (root / "raw" / "x.txt").write_text("第一回", encoding="utf-8")
    done = Command(root, ("clean", "a")).run_forked()
    faults.assert_one_error(done, 65, [sources.LOCK_FILE])
    assert not (root / "corpora").exists()


def test_case_16_a_recipe_cannot_name_a_source_that_leads_out(root: Path, tmp_path: Path, server: Server) -> None:
    recipe = tmp_path / "evil.toml"
    recipe.write_text(f'name = "evil"\n[download]\nsource = "{server.url}/%2e%2e"\n')
    done = Command(root, ("refresh", recipe)).run_forked()
    faults.assert_one_error(done, 78, [])
    assert server.log == []


# Survey, update, and more than one process


def test_a_survey_says_what_there_is_to_do_and_writes_nothing(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(), "/val.jsonl.zst": zstd(2000)})
    fetch(root, pile(server, "0"))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    found = survey(root, pile(server, "0,1,val"), Network())
    assert [(each.file.name, each.state, each.bytes) for each in found] == [
        ("train/00.jsonl.zst", "there", 0),
        ("train/01.jsonl.zst", "refused", 0),
        ("val.jsonl.zst", "new", len(zstd(2000))),
    ]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_an_update_fetches_what_changed_and_moves_its_pin_alone(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(seed=1), "/val.jsonl.zst": zstd(seed=2)})
    fetch(root, pile(server))
    before, old = cache.read_lock(root, "pile"), (root / "raw" / "pile" / "train" / "00.jsonl.zst").stat()
    server.files["/val.jsonl.zst"] = zstd(seed=3)
    server.log.clear()
    assert fetch(root, pile(server)).result == "unchanged"
    assert server.log == []
    done = fetch(root, pile(server), update=True)
    assert (done.fetched, done.unchanged, server.asked) == (1, 1, ["/val.jsonl.zst"])
    after = cache.read_lock(root, "pile")
    assert after["val.jsonl.zst"].sha256 == hashlib.sha256(zstd(seed=3)).hexdigest()
    assert after["train/00.jsonl.zst"] == before["train/00.jsonl.zst"]
    now = (root / "raw" / "pile" / "train" / "00.jsonl.zst").stat()
    assert (now.st_ino, now.st_mtime_ns) == (old.st_ino, old.st_mtime_ns)
    assert fetch(root, pile(server), update=True).result == "unchanged"


@pytest.mark.parametrize(("says", "is_known"), [("hash", True), ("etag", True), ("nothing", True), ("etag", False)])
def test_a_file_that_shrank_never_replaces_the_old_one_by_itself(
    root: Path, server: Server, says: str, is_known: bool
) -> None:
    server.says, server.files["/a.txt"] = says, b"all of the text"
    fetch(root, page(server, "/a.txt"))
    server.files["/a.txt"] = b"all"
    if not is_known:
        server.heads["/a.txt"] = [say(200, ETag='"new"', Content_Length="")] * 9
        server.headers = {"ETag": '"new"'}
    with pytest.raises(UpstreamChanged, match="shrank from 15 to 3 bytes"):
        fetch(root, page(server, "/a.txt"), update=True)
    assert (root / "raw" / "a" / "a.txt").read_bytes() == b"all of the text"
    assert fetch(root, page(server, "/a.txt")).result == "unchanged"
    assert fetch(root, page(server, "/a.txt"), update=True, allow_shrink=True).fetched == 1
    assert (root / "raw" / "a" / "a.txt").read_bytes() == b"all"


def test_a_file_that_is_lost_upstream_stays_and_the_others_are_updated(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(seed=1), "/val.jsonl.zst": zstd(seed=2)})
    fetch(root, pile(server))
    del server.files["/train/00.jsonl.zst"]
    server.files["/val.jsonl.zst"] = zstd(seed=3)
    with pytest.raises(UpstreamChanged, match="was removed upstream") as caught:
        fetch(root, pile(server), update=True)
    assert caught.value.exit_code == 10
    assert (root / "raw" / "pile" / "train" / "00.jsonl.zst").read_bytes() == zstd(seed=1)
    assert (root / "raw" / "pile" / "val.jsonl.zst").read_bytes() == zstd(seed=3)


def test_a_promise_that_comes_only_with_the_bytes_moves_no_pin_either(root: Path, server: Server) -> None:
    server.says, server.files["/a.txt"] = "hash", b"as it was"
    fetch(root, page(server, "/a.txt"))
    pinned = cache.read_lock(root, "a")
    (root / "raw" / "a" / "a.txt").unlink()
    server.files["/a.txt"], server.heads["/a.txt"] = b"as it is!", [say(405)]
    with pytest.raises(UpstreamChanged):
        fetch(root, page(server, "/a.txt"))
    assert cache.read_lock(root, "a") == pinned


def test_what_a_kill_left_of_a_transfer_that_had_ended_is_removed(root: Path, server: Server) -> None:
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


def test_the_files_of_a_source_share_a_rate(root: Path, server: Server) -> None:
    server.files.update({"/train/00.jsonl.zst": zstd(100_000, 1), "/val.jsonl.zst": zstd(100_000, 2)})
    start = time.monotonic()
    done = Command(root, ("download", "pile", "--shards", "0,val", "--mirror", server.url, "--limit-rate", "200k"))
    assert done.run().code == 0
    assert 0.8 < time.monotonic() - start < 5
