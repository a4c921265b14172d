"""Transfers under faults: cases 1 to 13 and 17 to 22 of the catalogue, with what must be so after each of them.

The numbers in the names are those of docs/design/reliability.md, section 2.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from pipeline.errors import NotPermitted
from pipeline.runtime.progress import Silent
from pipeline.sources import catalogue as sources
from pipeline.sources import download, partial
from pipeline.sources.catalogue import Source
from pipeline.sources.http import Network
from pipeline.store import files
from tests.support import bad_server as badserver
from tests.support import faults
from tests.support.bad_server import (
    HUB_FOLDER,
    Act,
    Handler,
    Server,
    cut_after,
    cut_unannounced,
    flipped,
    ignore_range,
    in_chunks,
    ranged,
    redirect,
    say,
    serve,
    stall,
    swap,
    trickle,
    wait_for,
    zipped,
)
from tests.support.faults import Command, Fault, Run, assert_survived

TOKEN = "hf_0123456789abcdef"
KIB = 1 << 10
SHARD = f"{HUB_FOLDER}/val.jsonl.zst"
INTERVAL = 16 * KIB
CONSTANTS = {"pipeline.sources.transfer.DURABLE_EVERY": INTERVAL, "pipeline.sources.http._PAUSE": 0.01}


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def zstd(size: int, seed: int = 0) -> bytes:
    """A zstd file of about `size` bytes."""
    return zstandard.ZstdCompressor().compress(noise(size, seed))


DATA, OTHER = zstd(200 * KIB, 1), zstd(200 * KIB, 2)
HALF = len(DATA) // 2


@dataclass(frozen=True)
class Trial:
    """A file of `server`, and the command that downloads it; `name` is what is published of it."""

    server: Server
    root: Path
    command: Command
    path: str
    name: str

    def run(self, *arguments: object, **constants: object) -> Run:
        """The command, with other options and constants than it always has."""
        named = {key.replace("__", "."): value for key, value in constants.items()}
        more = (*self.command.arguments, *arguments)
        return replace(self.command, arguments=more, constants={**self.command.constants, **named}).run_forked()

    def serves(self, data: bytes, *acts: Act, heads: tuple[Act, ...] = ()) -> None:
        self.server.files[self.path] = data
        self.server.scripts[self.path] = list(acts)
        self.server.heads[self.path] = list(heads)

    def survived(self, disturbed: Run, data: bytes = DATA, **asked: Any) -> Run:
        """All seven invariants, after a run and before another with the server as it should be; that other."""
        self.serves(data)
        secrets = (TOKEN, TOKEN.removeprefix("hf_"))
        expected = {self.name: hashlib.sha256(data).hexdigest()}
        asked = {"secrets": secrets, **asked}
        return assert_survived(self.root, self.run, expected, [disturbed], **asked)

    @property
    def target(self) -> Path:
        return self.root / self.name

    @property
    def starts(self) -> list[int]:
        """The first byte of each GET."""
        return [request.start for request in self.server.gets]

    @property
    def quarantined(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.target.parent / partial.QUARANTINE).glob("*")]


@pytest.fixture
def server() -> Iterator[Server]:
    with badserver.running() as one:
        yield one


@pytest.fixture
def hub(server: Server, root: Path) -> Trial:
    """A server that says the hash of its files, as the hub does; the file is a shard of the Pile."""
    server.says = "hash"
    environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}
    command = Command(root, ("download", "pile", "--shards", "val"), environment, CONSTANTS)
    return Trial(server, root, command, SHARD, "raw/pile/val.jsonl.zst")


@pytest.fixture
def plain(server: Server, root: Path) -> Trial:
    """A server that gives strong ETags; the file is named by its URL."""
    command = Command(root, ("download", f"{server.url}/a.jsonl.zst"), {"HF_TOKEN": TOKEN}, CONSTANTS)
    return Trial(server, root, command, "/a.jsonl.zst", "raw/a/a.jsonl.zst")


@pytest.fixture(params=["hub", "plain"])
def either(request: pytest.FixtureRequest) -> Trial:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Trial)
    return found


def state_of(trial: Trial) -> dict[str, Any]:
    found = json.loads(partial.state_path(trial.target).read_bytes())
    assert isinstance(found, dict)
    return found


# 1 to 8: answers that are cut, moved and wrong


def test_interrupted_transfer_resumes_at_the_exact_byte(either: Trial) -> None:
    """Case 1."""
    cuts = [1, 3, 4, 50_000, 5, 1000, 60_000, 0]
    either.serves(DATA, *map(cut_after, cuts))
    done = either.run()
    assert done.code == 0
    assert either.starts == [sum(cuts[:n]) for n in range(len(cuts) + 1)]
    assert either.server.sent == len(DATA)
    either.survived(done, twice=lambda: either.server.sent - len(DATA))


def test_interrupted_transfer_is_resumed_by_the_next_command(either: Trial) -> None:
    """Case 1."""
    either.serves(DATA, cut_after(HALF), *[say(503)] * 9)
    first = either.run()
    assert (state_of(either)["durable"], partial.part_path(either.target).read_bytes()) == (HALF, DATA[:HALF])
    either.survived(first, code=75, names=[either.path], twice=lambda: either.server.sent - len(DATA))
    assert either.starts[-1] == HALF


def test_truncation_without_content_length_is_detected_by_the_announced_size(either: Trial) -> None:
    """Case 2."""
    either.serves(DATA, cut_unannounced(HALF), cut_after(7))
    done = either.run()
    assert either.starts == [0, HALF, HALF + 7]
    either.survived(done, twice=lambda: either.server.sent - len(DATA))


def test_truncation_of_a_file_without_metadata_is_detected_by_its_last_frame(plain: Trial) -> None:
    """Case 2."""
    plain.server.says = "nothing"
    plain.serves(DATA, cut_unannounced(HALF), heads=(say(405),))
    done = plain.run()
    assert plain.starts == [0, 0]
    plain.survived(done)


def test_file_that_is_always_truncated_is_never_published(plain: Trial) -> None:
    """Case 2."""
    plain.server.says = "nothing"
    plain.serves(DATA, *[cut_unannounced(HALF)] * 9, heads=(say(405),))
    plain.survived(plain.run(), code=75, names=["a.jsonl.zst", "inside a zstd frame"])


def test_file_replaced_between_two_commands_is_fetched_from_the_start(either: Trial) -> None:
    """Case 3."""
    either.serves(DATA, cut_after(HALF), *[say(503)] * 9)
    first = either.run()
    assert first.code == 75
    either.survived(first, OTHER)
    assert either.starts[-1] == 0


def test_file_replaced_within_one_command_is_never_a_mix(either: Trial) -> None:
    """Case 3."""
    either.serves(DATA, swap(OTHER, HALF))
    done = either.run()
    assert done.code == 0
    assert either.target.read_bytes() == OTHER
    either.survived(done, OTHER)


def test_replaced_pinned_file_is_refused(either: Trial) -> None:
    """Case 3."""
    either.serves(DATA)
    assert either.run().code == 0
    pinned = faults.published(either.root)
    either.target.unlink()
    either.serves(DATA, swap(OTHER, HALF))
    first = either.run()
    assert faults.published(either.root) == pinned
    either.survived(first, code=10, names=[either.path, "pinned"], damaged=True)


def test_interrupted_update_keeps_the_old_file(either: Trial) -> None:
    """Case 3."""
    either.serves(DATA)
    assert either.run().code == 0
    old = faults.published(either.root)
    either.serves(OTHER, cut_after(HALF), *[say(503)] * 9)
    first = either.run("--update-lock")
    assert first.code == 75
    assert either.target.read_bytes() == DATA
    assert faults.published(either.root) == old
    assert either.run().code == 0  # without asking, the old one is still what was wanted
    either.serves(OTHER)
    expected = {either.name: hashlib.sha256(OTHER).hexdigest()}
    again = functools.partial(either.run, "--update-lock")
    assert_survived(either.root, again, expected, [first], code=75, names=[either.path], old=old, secrets=[TOKEN])
    assert either.starts[-1] == HALF


def test_old_file_of_the_same_size_is_not_accepted_as_the_new_one(hub: Trial) -> None:
    """Case 3: A whole part beside the old file: a process ended just before it published."""
    old, new = DATA, DATA[:-1] + bytes([DATA[-1] ^ 1])
    hub.serves(old)
    assert hub.run().code == 0
    partial.part_path(hub.target).write_bytes(new)
    sha256 = hashlib.sha256(new).hexdigest()
    state = partial.PartialState(1, hub.server.url + SHARD, sha256, len(new), "", len(new))
    files.write_file(partial.state_path(hub.target), msgspec.json.encode(state))
    hub.serves(new)
    assert hub.run("--update-lock").code == 0
    assert hub.target.read_bytes() == new
    assert len(hub.server.gets) == 1


def test_response_that_ignores_the_range_is_compared_with_the_part(hub: Trial) -> None:
    """Case 4."""
    hub.serves(DATA, cut_after(HALF), ignore_range)
    done = hub.run()
    assert done.code == 0
    assert [bool(request.range) for request in hub.server.gets] == [False, True]
    hub.survived(done)


def test_part_is_replaced_from_the_first_difference_on(hub: Trial) -> None:
    """Case 4."""
    hub.serves(DATA, flipped(1000, cut=HALF), ignore_range)
    done = hub.run()
    assert done.code == 0
    assert hub.quarantined == []
    hub.survived(done)


def test_truncated_full_response_keeps_the_part(hub: Trial) -> None:
    """Case 4."""
    hub.serves(DATA, cut_after(HALF), lambda handler: cut_unannounced(1000)(handler))
    done = hub.run()
    assert hub.starts == [0, HALF, HALF]
    hub.survived(done)


@pytest.mark.parametrize(
    "span",
    [f"bytes {HALF + 1}-{len(DATA) - 1}/{len(DATA)}", f"bytes {HALF}-{len(DATA)}/{len(DATA) + 1}", "", "bytes ²-3/4"],
)
def test_response_with_another_range_is_never_appended(either: Trial, span: str) -> None:
    """Case 5."""
    either.serves(DATA, cut_after(HALF), ranged(span))
    done = either.run()
    assert (done.code, either.starts) == (0, [0, HALF, HALF])
    either.survived(done)


def test_second_wrong_range_raises_protocol_broken(either: Trial) -> None:
    """Case 5."""
    either.serves(DATA, cut_after(HALF), *[ranged("bytes 5-9/10")] * 9)
    first = either.run()
    assert len(either.starts) == 3
    either.survived(first, code=76, names=[either.path], twice=lambda: either.server.sent - len(DATA), most=2 * 11)


def test_416_with_the_size_of_the_part_completes_the_transfer(plain: Trial) -> None:
    """Case 6."""
    known = {"ETag": badserver.strong_etag(DATA)}
    plain.serves(DATA, in_chunks(DATA, whole=False, **known), heads=(say(200, ETag=known["ETag"], Content_Length=""),))
    done = plain.run()
    assert [(request.status, request.start) for request in plain.server.gets] == [(200, 0), (416, len(DATA))]
    plain.survived(done, twice=lambda: plain.server.sent - len(DATA))


def test_416_with_a_smaller_size_restarts_the_transfer(either: Trial) -> None:
    """Case 6."""
    either.serves(DATA, cut_after(HALF), say(416, Content_Range=f"bytes */{HALF - 1}"))
    done = either.run()
    assert either.starts == [0, HALF, 0]
    either.survived(done)


def test_server_that_never_has_the_rest_raises_protocol_broken(either: Trial) -> None:
    """Case 6."""
    nothing_more = say(416, Content_Range="bytes */nothing")
    either.serves(DATA, cut_after(HALF), nothing_more, cut_after(HALF), nothing_more)
    either.survived(either.run(), code=76, names=[either.path, "416"])


def test_with_a_known_hash_no_etag_is_sent(hub: Trial) -> None:
    """Case 7."""

    def another_etag_each_time(handler: Handler) -> None:
        handler.server.headers["ETag"] = f'"{len(handler.server.log)}"'
        serve(handler, cut=HALF if len(handler.server.gets) == 1 else None)

    hub.serves(DATA, *[another_etag_each_time] * 3, heads=(another_etag_each_time,))
    done = hub.run()
    assert hub.starts == [0, HALF]
    assert not any("If-Range" in request.headers for request in hub.server.log)
    hub.survived(done, twice=lambda: hub.server.sent - len(DATA))


def test_without_a_hash_the_strong_etag_is_sent(plain: Trial) -> None:
    """Case 7."""
    plain.serves(DATA, cut_after(HALF))
    done = plain.run()
    assert plain.server.gets[1].headers["If-Range"] == badserver.strong_etag(DATA)
    plain.survived(done)


@pytest.mark.parametrize("known", [{"ETag": 'W/"weak"'}, {"Last-Modified": "Fri, 20 Nov 2026 10:00:00 GMT"}, {}])
def test_weak_etag_or_date_does_not_allow_resuming(plain: Trial, known: dict[str, str]) -> None:
    """Case 7."""
    plain.server.says, plain.server.headers = "nothing", known
    plain.serves(DATA, cut_after(HALF), cut_after(HALF), *[say(503)] * 9)
    first = plain.run()
    assert plain.starts[:2] == [0, 0]
    assert faults.leftovers(plain.root) == []  # what cannot be continued is not kept
    plain.survived(first, code=75, names=[plain.path])
    assert plain.starts[-1] == 0


def test_response_with_content_encoding_is_refused(either: Trial) -> None:
    """Case 8."""
    either.serves(DATA, *[zipped] * 9)
    first = either.run()
    assert {request.headers["Accept-Encoding"] for request in either.server.log} == {"identity"}
    either.survived(first, code=76, names=[either.path, "compressed the response"])


# 9 and 10: other content than was promised


def test_one_wrong_bit_is_repaired_by_fetching_again(hub: Trial) -> None:
    """Case 9."""
    hub.serves(DATA, flipped(HALF))
    done = hub.run()
    assert done.code == 0
    (bad,) = hub.quarantined
    assert [at for at, (one, other) in enumerate(zip(bad, DATA, strict=True)) if one != other] == [HALF]
    hub.survived(done)


def test_wrong_bits_twice_raise_bad_data(hub: Trial) -> None:
    """Case 9."""
    hub.serves(DATA, *[flipped(HALF)] * 9)
    first = hub.run()
    assert len(hub.server.gets) == 2
    assert len(hub.quarantined) == 1
    hub.survived(first, code=65, names=[hub.path, "quarantine/"])


def test_wrong_bit_in_an_earlier_part_is_detected(hub: Trial) -> None:
    """Case 9."""
    hub.serves(DATA, cut_after(HALF), *[say(503)] * 9)
    first = hub.run()
    with open(partial.part_path(hub.target), "r+b") as part:
        part.seek(1000)
        part.write(bytes([DATA[1000] ^ 1]))
    hub.survived(first)
    assert len(hub.quarantined) == 1


PORTAL = say(200, b"<html>Log in to the hotel's network</html>", Content_Type="text/html; charset=utf-8")
PORTAL_WITHOUT_TYPE = say(200, b"<html>Log in to the hotel's network</html>")


@pytest.mark.parametrize("heads", [(PORTAL,), (), (say(405),)], ids=["also HEAD", "not HEAD", "HEAD says nothing"])
def test_captive_portal_is_not_accepted_as_a_shard(either: Trial, heads: tuple[Act, ...]) -> None:
    """Case 10."""
    either.serves(DATA, *[PORTAL] * 9, heads=heads)
    first = either.run()
    assert not either.root.exists() or faults.leftovers(either.root) == []
    either.survived(first, code=75, names=[either.path, "a web page"])


def test_captive_portal_without_content_type_is_not_accepted(either: Trial) -> None:
    """Case 10."""
    either.serves(DATA, *[PORTAL_WITHOUT_TYPE] * 9, heads=(say(405),))
    first = either.run()
    assert faults.leftovers(either.root) == []
    either.survived(first, code=75, names=[either.path, "data that is not zstd"])


def test_captive_portal_is_not_taken_for_a_shrunk_file(either: Trial) -> None:
    """Case 10."""
    either.serves(DATA)
    assert either.run().code == 0
    old = faults.published(either.root)
    either.serves(DATA, PORTAL, heads=(PORTAL,))
    either.survived(either.run("--update-lock"), code=75, names=["a web page"], old=old)


# 11 to 13: patience


def test_busy_server_is_retried_after_the_requested_wait(either: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 11."""
    naps: list[float] = []
    monkeypatch.setattr(Network, "sleep", lambda network, seconds, where: naps.append(seconds))
    monkeypatch.setenv("NO_PROXY", "*")
    busy = [say(503), say(429, Retry_After="7"), cut_after(HALF), say(408), say(500, Retry_After="9999"), say(425)]
    either.serves(DATA, *busy, heads=(say(503, Retry_After="11"),))
    fetch_in_process(either, either.root)
    assert [nap for nap in naps if nap > 5] == [11, 7, 300]
    assert either.starts == [0, 0, 0, HALF, HALF, HALF, HALF]
    assert either.target.read_bytes() == DATA


def test_wait_beyond_the_deadline_ends_the_command(either: Trial) -> None:
    """Case 11."""
    either.serves(DATA, say(429, Retry_After="100"))
    first = either.run("--deadline", "20")
    assert first.seconds < 10
    either.survived(first, code=75, names=[either.path, "--deadline"])


SHORT = {
    "pipeline__sources__http___READ_TIMEOUT": 0.3,
    "pipeline__sources__http___MAX_IDLE": 0.2,
    "pipeline__sources__transfer___SLOW_SECONDS": 0.4,
}


@pytest.mark.parametrize("after", [0, 1000])
def test_server_that_stalls_is_retried_and_then_given_up(either: Trial, after: int) -> None:
    """Case 12."""
    either.serves(DATA, *[stall(after)] * 9)
    first = either.run(**SHORT)
    assert 1 < len(either.server.gets) < 9
    either.survived(first, code=75, names=[either.path, "no answer for too long"])


def test_server_that_never_answers_is_retried_and_then_given_up(either: Trial) -> None:
    """Case 12."""

    def silent(handler: Handler) -> None:
        handler.server.stopping.wait()

    either.serves(DATA, heads=(silent,) * 9)
    first = either.run(**SHORT)
    assert 1 < len(either.server.log) < 9
    either.survived(first, code=75, names=[either.path, "no answer for too long"])


def test_trickling_server_is_retried_and_then_given_up(either: Trial) -> None:
    """Case 12."""
    either.serves(DATA, *[trickle(1, 0.05)] * 9)
    first = either.run(**SHORT)
    assert 1 < len(either.server.gets) < 9
    either.survived(first, code=75, names=[either.path, "received only"])
    assert either.starts[-1] > 0  # and yet what came is kept


def stall_late(handler: Handler) -> None:
    """Send little for a while, and then nothing for ever."""
    handler.begin(200, {"Content-Length": str(len(DATA)), **handler.server.told(DATA)})
    for place in range(17):
        handler.send(DATA[place : place + 1])
        handler.server.stopping.wait(0.1)
    handler.server.stopping.wait()


@pytest.mark.parametrize("act", [stall_late, trickle(1, 0.05)], ids=["silent in the end", "trickling"])
def test_deadline_holds_for_stalling_and_trickling_servers(either: Trial, act: Act) -> None:
    """Case 12."""
    either.serves(DATA, *[act] * 9)
    first = either.run("--deadline", "2")
    assert 1.9 < first.seconds < 3.2
    either.survived(first, code=75, names=[either.path, "--deadline"])


def test_response_without_length_ended_by_the_deadline_is_not_complete(server: Server, root: Path) -> None:
    """Case 12."""

    def endless(handler: Handler) -> None:
        handler.begin(200, {})
        handler.send(b"the first line\n")
        handler.server.stopping.wait()

    server.says = "nothing"
    server.files["/a.txt"], server.scripts["/a.txt"], server.heads["/a.txt"] = b"all of it", [endless], [say(405)]
    command = Command(root, ("download", f"{server.url}/a.txt", "--deadline", "1"), {}, CONSTANTS)
    expected = {"raw/a/a.txt": hashlib.sha256(b"all of it").hexdigest()}
    assert_survived(root, command.run, expected, [command.run()], code=75, names=["/a.txt", "--deadline"])


def test_expired_signed_link_is_requested_again(hub: Trial) -> None:
    """Case 13."""
    with badserver.running() as store:
        signed = [f"/blob?X-Amz-Signature=secret{number}" for number in range(4)]
        links = [redirect(store.url + path, **as_names(badserver.linked(DATA))) for path in signed]
        hub.serves(DATA, *links)
        store.files |= dict.fromkeys(signed, DATA)
        store.scripts[signed[0]] = [cut_after(HALF), say(403)]
        store.scripts[signed[1]] = [say(403)]
        done = hub.run("--allow-host", f"127.0.0.1:{store.server_port}")
        assert done.code == 0
        assert [(request.path, request.start) for request in store.gets] == [
            (signed[0], 0),
            (signed[1], HALF),
            (signed[2], HALF),
        ]
        assert not any("Authorization" in request.headers for request in store.log)
        hub.survived(done, secrets=(TOKEN, "Signature", "secret"), twice=lambda: store.sent - len(DATA))


def test_signed_link_that_is_never_valid_is_given_up(hub: Trial) -> None:
    """Case 13."""
    with badserver.running() as store:
        link = redirect(f"{store.url}/thread?X-Amz-Signature=secret", **as_names(badserver.linked(DATA)))
        hub.serves(DATA, *[link] * 9)
        store.scripts["/thread?X-Amz-Signature=secret"] = [say(403)] * 9
        first = hub.run("--allow-host", f"127.0.0.1:{store.server_port}")
    hub.survived(first, code=75, names=[hub.path, "403"], secrets=(TOKEN, "Signature", "secret"))


def as_names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in headers.items()}


# 17 to 20: the disk


def test_too_small_disk_is_refused_before_any_write(hub: Trial) -> None:
    """Case 17."""
    with faults.tmpfs(hub.root, "2m"):
        hub.serves(DATA)
        first = hub.run()
        assert list(hub.root.iterdir()) == []
        assert hub.server.gets == []
        assert "0.07 GB needed, 0.00 GB free" in first.err
    hub.survived(first, code=74, names=[str(hub.root)])


NO_RESERVE = {"pipeline__sources__download___RESERVE": 0}


@pytest.mark.parametrize("trial", ["hub", "plain"])
def test_disk_full_during_the_transfer_keeps_the_durable_bytes(trial: str, request: pytest.FixtureRequest) -> None:
    """Case 18."""
    either: Trial = request.getfixturevalue(trial)
    data, filler = zstd(1500 * KIB, 3), either.root / "filler"

    def fill() -> None:
        """Somebody else takes what is free."""
        with open(filler, "wb", buffering=0) as out, suppress(OSError):
            while out.write(bytes(4096)):
                pass

    def full_after_a_third(handler: Handler) -> None:
        handler.begin(200, {"Content-Length": str(len(data)), **handler.server.told(data)})
        handler.send(data[: len(data) // 3])
        wait_for(lambda: partial.state_path(either.target).exists())
        fill()
        handler.send(data[len(data) // 3 :])

    with faults.tmpfs(either.root, "3m"):
        either.serves(data, full_after_a_third)
        first = either.run(**NO_RESERVE)
        kept = state_of(either)["durable"]
        assert 0 < kept <= len(data) // 3 + INTERVAL
        assert partial.part_path(either.target).read_bytes()[:kept] == data[:kept]
        filler.unlink()
        either.serves(data)
        expected = {either.name: hashlib.sha256(data).hexdigest()}
        again = functools.partial(either.run, **NO_RESERVE)
        names = [either.target.name, "no space left"]
        assert_survived(either.root, again, expected, [first], code=74, names=names, secrets=[TOKEN])
        assert either.starts[-1] == kept


# Small pieces, so that there are many operations on the disk.
SMALL, MEDIUM = zstd(3 * INTERVAL), zstd(6 * INTERVAL)
PIECE = 4 * KIB
FINE = {**CONSTANTS, "pipeline.sources.transfer._CHUNK": PIECE}


@dataclass
class Twice:
    """How many bytes a command asked for that an earlier one had already written."""

    trial: Trial

    def __post_init__(self) -> None:
        part, target = files.size_of(partial.part_path(self.trial.target)), files.size_of(self.trial.target)
        self.written, self.before = part or target or 0, len(self.trial.starts)

    def __call__(self) -> int:
        asked = self.trial.starts[self.before :]
        return self.written - asked[0] if asked else 0


def source_of(trial: Trial) -> Source:
    (reference, *options) = trial.command.arguments[1:]
    return sources.resolve(str(reference), shards=str(options[1]) if options else "", mirror=trial.server.url)


def fetch_in_process(trial: Trial, root: Path, **options: bool) -> Run:
    """The same as the command does, in this process."""
    download.download(root, source_of(trial), Silent(), **options)
    return Run(0, "", "")


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, what `FINE` is in others."""
    monkeypatch.setenv("NO_PROXY", "*")
    for name, value in FINE.items():
        monkeypatch.setattr(name, value)


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize(
    ("trial", "what"), [("hub", "kill"), *[("plain", what) for what in ("ENOSPC", "EIO", "kill", "torn")]]
)
def test_command_after_any_disk_fault_succeeds(trial: str, what: str, request: pytest.FixtureRequest) -> None:
    """Cases 18, 19 and 22. As SQLite tests it: fail the first operation, then the second, until a run succeeds."""
    either: Trial = request.getfixturevalue(trial)
    expected = {either.name: hashlib.sha256(SMALL).hexdigest()}
    codes = set()

    def attempt(number: int) -> bool:
        either.serves(SMALL)
        root = either.root.with_name(f"artifacts-{number}")
        trial = replace(either, root=root, command=replace(either.command, root=root, constants=FINE))
        operation = "write" if what == "torn" else "any"
        first = trial.command.run_forked(Fault(operation, number, what, lasting=what == "ENOSPC"))
        codes.add(first.code)
        through = first.code == 0
        failed = {} if through or first.code == -9 else {"code": 74, "names": [root.name]}
        twice, again = Twice(trial), functools.partial(fetch_in_process, trial, root)
        assert_survived(root, again, expected, [first], twice=twice, most=INTERVAL + PIECE, secrets=[TOKEN], **failed)
        return not through

    assert faults.sweep(attempt) > 12
    assert codes == {0, 74 if what.startswith("E") else -9}


@pytest.mark.usefixtures("fine")
def test_failed_sync_is_not_retried(either: Trial) -> None:
    """Case 19."""
    either.serves(SMALL)
    broken = faults.FaultyDisk(Fault("sync", 4, "EIO"))
    with faults.disk(broken), pytest.raises(OSError, match="nput/output error"):
        fetch_in_process(either, either.root)
    failed = [operation.path for operation in broken.log if operation.kind == "sync"][-1]
    assert failed == partial.part_path(either.target)
    kept = state_of(either)["durable"]
    assert 0 < kept < len(SMALL)
    assert files.size_of(partial.part_path(either.target)) == kept + INTERVAL
    fetch_in_process(either, either.root)
    assert either.starts[-1] == kept
    assert either.target.read_bytes() == SMALL


def test_failing_fsync_ends_the_command(either: Trial) -> None:
    """Case 19."""
    either.serves(SMALL)
    command = replace(either.command, before=faults.injected("fsync", "error=EIO:when=4"), constants=FINE)
    first = command.run()
    kept = state_of(either)["durable"]
    assert 0 < kept < len(SMALL)
    either.survived(first, SMALL, code=74, names=[either.target.name], twice=Twice(either), most=INTERVAL + PIECE)
    assert either.starts[-1] == kept


def placed(after: Mapping[Path, bytes], old: Path, new: Path) -> None:
    """What a power cut left below `old`, below `new`."""
    for path, data in after.items():
        place = new / path.relative_to(old)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


@pytest.mark.usefixtures("fine")
def test_command_after_a_power_cut_at_any_point_succeeds(either: Trial) -> None:
    """Case 20: Every state that a system may leave that keeps what was synced, made from a log of one run."""
    either.serves(SMALL)
    watched = faults.LoggingDisk()
    with faults.disk(watched):
        fetch_in_process(either, either.root)
    expected, states = faults.published(either.root), faults.power_cuts(watched.log, {})
    assert len(states) > 20
    for number, after in enumerate(states):
        root = either.root.with_name(f"artifacts-{number}")
        placed(after, either.root, root)
        trial = replace(either, root=root)
        if partial.state_path(trial.target).exists() and (part := partial.part_path(trial.target)).exists():
            durable = state_of(trial)["durable"]
            assert part.read_bytes()[:durable] == SMALL[:durable]
            assert len(part.read_bytes()) >= durable
        faults.assert_whole(root, (expected,), {})
        twice = Twice(trial)
        fetch_in_process(either, root)
        assert faults.published(root) == expected
        faults.assert_whole(root, (expected,), expected)
        assert faults.leftovers(root) == []
        assert twice() <= INTERVAL + PIECE


@pytest.mark.usefixtures("fine")
def test_part_after_a_power_cut_belongs_to_the_file_in_its_state(plain: Trial) -> None:
    """Case 20: the server changes from A to B, of the same size, and back, while half of one is stored."""
    one, other = SMALL, bytes(reversed(SMALL[4:])).join((SMALL[:4], b""))
    assert (len(one), one[:4]) == (len(other), other[:4])
    for data in (one, other):
        watched = faults.LoggingDisk()
        before = {path: path.read_bytes() for path in plain.root.rglob("*.part*")}
        plain.serves(data, cut_after(len(one) // 2), *[say(403)] * 9)
        with faults.disk(watched), pytest.raises(NotPermitted):
            fetch_in_process(plain, plain.root)
    states = faults.power_cuts(watched.log, before)
    assert len(states) > 8
    plain.serves(one)
    for number, after in enumerate(states):
        root = plain.root.with_name(f"artifacts-{number}")
        placed(after, plain.root, root)
        fetch_in_process(plain, root)
        assert (root / plain.name).read_bytes() == one


def test_command_after_a_power_cut_on_ext4_succeeds(hub: Trial, tmp_path: Path) -> None:
    """Case 20."""
    hub.serves(DATA, trickle(2 * KIB, 0.005))
    with faults.ext4(hub.root, tmp_path / "image"):
        process = replace(hub.command, constants={**FINE, **{"pipeline.sources.download._RESERVE": 0}}).start()
        wait_for(lambda: hub.server.sent > 3 * INTERVAL)
        with faults.stopped(process), faults.power_cut(tmp_path / "image", tmp_path / "cut" / "artifacts") as root:
            cut = replace(hub, root=root, command=replace(hub.command, root=root))
            kept, part = state_of(cut)["durable"], partial.part_path(cut.target).read_bytes()
            assert INTERVAL <= kept <= len(part)
            assert part[:kept] == DATA[:kept]
            sent = hub.server.sent
            assert sent - kept <= 2 * INTERVAL + PIECE
            killed = faults.kill(process)
            cut.serves(DATA)
            again = functools.partial(cut.run, **NO_RESERVE)
            expected = {hub.name: hashlib.sha256(DATA).hexdigest()}
            assert_survived(root, again, expected, [killed], secrets=[TOKEN])
            assert hub.starts == [0, kept]


# 21 and 22: processes


def test_two_commands_fetch_a_file_once(either: Trial) -> None:
    """Case 21."""
    either.serves(DATA, trickle(4 * KIB, 0.02))
    first = either.command.start()
    wait_for(lambda: either.server.gets)
    second = either.run()
    faults.assert_one_error(second, 75, [str(either.target.parent), f"process {first.pid}", "download"])
    one = faults.ended(first)
    assert one.code == 0
    assert len(either.server.gets) == 1
    either.survived(second, code=75, old=faults.published(either.root))
    assert len(either.server.gets) == 1


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("update", [False, True])
def test_file_fetched_by_another_process_is_not_fetched_again(either: Trial, update: bool) -> None:
    """Case 21: It surveyed while the other one fetched, and got the lock when that was done."""
    source = source_of(either)
    if update:
        either.serves(OTHER)
        fetch_in_process(either, either.root)
    either.serves(DATA)
    found = download.survey(either.root, source, Network(), update=update)
    fetch_in_process(either, either.root, update=update)
    asked = len(either.server.gets)
    done = download.fetch(either.root, source, found, Silent(), Network(), jobs=1, update=update)
    assert (done.fetched, done.unchanged) == (0, 1)
    assert len(either.server.gets) == asked
    assert either.target.read_bytes() == DATA


@pytest.mark.usefixtures("fine")
def test_kill_at_any_byte_loses_at_most_one_interval(either: Trial) -> None:
    """Case 22."""
    draw, kills, roots = random.Random(22), 0, 0
    expected = {either.name: hashlib.sha256(MEDIUM).hexdigest()}
    resumed = 0
    while kills < 25:  # and as many for the other kind of server
        roots += 1
        root = either.root.with_name(f"artifacts-{roots}")
        trial = replace(either, root=root, command=replace(either.command, root=root, constants=FINE))
        done = Run(0, "", "")
        for _ in range(5):
            trial.serves(MEDIUM, trickle(512, 0.002))
            twice = Twice(trial)
            done = trial.command.run_forked(kill_after=draw.uniform(0.02, 0.15))
            assert done.code in (0, -9), done.err
            assert twice() <= INTERVAL + PIECE
            resumed += twice.written > 0 and done.code == -9
            kills += done.code == -9
        trial.serves(MEDIUM)
        twice, again = Twice(trial), functools.partial(fetch_in_process, trial, root)
        assert_survived(root, again, expected, [done], twice=twice, most=INTERVAL + PIECE, secrets=[TOKEN])
    assert resumed > 5


# What holds beside the catalogue


def test_unreadable_state_discards_only_the_part(either: Trial) -> None:
    for torn in (b"", b"{", b'{"schema": 1}', b"\xff", json.dumps({"schema": 9}).encode(), b"[" * 100_000):
        either.serves(DATA, cut_after(HALF), *[say(503)] * 9)
        either.command.run_forked()
        partial.state_path(either.target).write_bytes(torn)
        either.serves(DATA)
        assert either.command.run_forked().code == 0
        assert either.target.read_bytes() == DATA
        assert either.starts[-1] == 0
        either.target.unlink()
        (either.target.parent / sources.LOCK_FILE).unlink()


def test_state_that_claims_more_bytes_than_the_part_is_corrected(either: Trial) -> None:
    either.serves(DATA, cut_after(HALF), *[say(503)] * 9)
    first = either.run()
    os.truncate(partial.part_path(either.target), 1000)
    either.survived(first)
    assert either.starts[-1] == 1000


def test_part_of_another_file_is_never_resumed(plain: Trial) -> None:
    """The server goes from A to B and back to A, and each time the command is killed."""
    plain.serves(DATA, cut_after(HALF), *[say(503)] * 9)
    assert plain.run().code == 75
    assert OTHER[:1000] != DATA[:1000]
    plain.serves(OTHER[: len(DATA)].ljust(len(DATA), b"!"), trickle(KIB, 0.01))
    process = plain.command.start()
    wait_for(lambda: (files.size_of(partial.part_path(plain.target)) or HALF) not in (0, HALF))
    plain.survived(faults.kill(process))
