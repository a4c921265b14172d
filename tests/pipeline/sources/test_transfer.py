"""Transfers under faults: cases 1 to 13 and 17 to 22, with the invariants that hold after each.

Case numbers are those of docs/design/reliability.md, section 2.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zstandard

from pipeline.errors import BadData, NotPermitted
from pipeline.runtime.progress import SilentProgress
from pipeline.sources import catalogue, download, partial, transfer
from pipeline.sources.catalogue import Source
from pipeline.sources.http import Network, RemoteFile
from pipeline.sources.walk import LOCK_FILE
from pipeline.store import files
from tests.support import bad_server, faults
from tests.support.bad_server import (
    HUB_FOLDER,
    Action,
    Handler,
    Server,
    compress_body,
    cut_after,
    cut_without_length,
    flip_bit,
    ignore_range,
    redirect,
    replace_file,
    respond,
    respond_range,
    send_chunked,
    serve,
    stall,
    trickle,
    wait_for,
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
    """Return a zstd file of about `size` bytes."""
    return zstandard.ZstdCompressor().compress(noise(size, seed))


DATA, OTHER = zstd(200 * KIB, 1), zstd(200 * KIB, 2)
HALF = len(DATA) // 2


@dataclass(frozen=True)
class Trial:
    """A file of `server` and the command that downloads it. `name` is its path below `root` once published."""

    server: Server
    root: Path
    command: Command
    path: str
    name: str

    def run(self, *arguments: object, **constants: object) -> Run:
        """Run the command with additional options and constants."""
        named = {key.replace("__", "."): value for key, value in constants.items()}
        command_arguments = (*self.command.arguments, *arguments)
        return replace(
            self.command, arguments=command_arguments, constants={**self.command.constants, **named}
        ).run_forked()

    def serve_file(self, data: bytes, *acts: Action, heads: tuple[Action, ...] = ()) -> None:
        self.server.files[self.path] = data
        self.server.scripts[self.path] = list(acts)
        self.server.heads[self.path] = list(heads)

    def assert_survived(self, disturbed: Run, data: bytes = DATA, **options: Any) -> Run:
        """Assert the seven invariants after a disturbed run, run again with a correct server, and return that run."""
        self.serve_file(data)
        secrets = (TOKEN, TOKEN.removeprefix("hf_"))
        expected = {self.name: hashlib.sha256(data).hexdigest()}
        options = {"secrets": secrets, **options}
        return assert_survived(self.root, self.run, expected, [disturbed], **options)

    @property
    def target(self) -> Path:
        return self.root / self.name

    @property
    def starts(self) -> list[int]:
        """First byte of each GET request."""
        return [request.start for request in self.server.gets]

    @property
    def quarantined(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.target.parent / partial.QUARANTINE).glob("*")]


@pytest.fixture
def server() -> Iterator[Server]:
    with bad_server.running_server() as running:
        yield running


@pytest.fixture
def hub(server: Server, root: Path) -> Trial:
    """A shard of the Pile on a server that publishes hashes, as the hub does."""
    server.announces = "hash"
    environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}
    command = Command(root, ("download", "pile", "--shards", "val"), environment, CONSTANTS)
    return Trial(server, root, command, SHARD, "raw/pile/val.jsonl.zst")


@pytest.fixture
def plain(server: Server, root: Path) -> Trial:
    """A file named by its URL on a server that sends strong ETags."""
    command = Command(root, ("download", f"{server.url}/a.jsonl.zst"), {"HF_TOKEN": TOKEN}, CONSTANTS)
    return Trial(server, root, command, "/a.jsonl.zst", "raw/a/a.jsonl.zst")


@pytest.fixture(params=["hub", "plain"])
def either(request: pytest.FixtureRequest) -> Trial:
    trial = request.getfixturevalue(request.param)
    assert isinstance(trial, Trial)
    return trial


def state_of(trial: Trial) -> dict[str, Any]:
    state = json.loads(partial.state_path(trial.target).read_bytes())
    assert isinstance(state, dict)
    return state


# Cases 1 to 8: truncated, moved and wrong responses


def test_interrupted_transfer_resumes_at_the_exact_byte(either: Trial) -> None:
    """Case 1."""
    cuts = [1, 3, 4, 50_000, 5, 1000, 60_000, 0]
    either.serve_file(DATA, *map(cut_after, cuts))
    run = either.run()
    assert run.code == 0
    assert either.starts == [sum(cuts[:n]) for n in range(len(cuts) + 1)]
    assert either.server.sent == len(DATA)
    either.assert_survived(run, bytes_fetched_twice=lambda: either.server.sent - len(DATA))


def test_interrupted_transfer_is_resumed_by_the_next_command(either: Trial) -> None:
    """Case 1."""
    either.serve_file(DATA, cut_after(HALF), *[respond(503)] * 9)
    first = either.run()
    assert (state_of(either)["durable"], partial.part_path(either.target).read_bytes()) == (HALF, DATA[:HALF])
    either.assert_survived(
        first, code=75, names=[either.path], bytes_fetched_twice=lambda: either.server.sent - len(DATA)
    )
    assert either.starts[-1] == HALF


def test_truncation_without_content_length_is_detected_by_the_announced_size(either: Trial) -> None:
    """Case 2."""
    either.serve_file(DATA, cut_without_length(HALF), cut_after(7))
    run = either.run()
    assert either.starts == [0, HALF, HALF + 7]
    either.assert_survived(run, bytes_fetched_twice=lambda: either.server.sent - len(DATA))


def test_truncation_of_a_file_without_metadata_is_detected_by_its_last_frame(plain: Trial) -> None:
    """Case 2."""
    plain.server.announces = "nothing"
    plain.serve_file(DATA, cut_without_length(HALF), heads=(respond(405),))
    run = plain.run()
    assert plain.starts == [0, 0]
    plain.assert_survived(run)


def test_file_that_is_always_truncated_is_never_published(plain: Trial) -> None:
    """Case 2."""
    plain.server.announces = "nothing"
    plain.serve_file(DATA, *[cut_without_length(HALF)] * 9, heads=(respond(405),))
    plain.assert_survived(plain.run(), code=75, names=["a.jsonl.zst", "inside a zstd frame"])


def test_file_replaced_between_two_commands_is_fetched_from_the_start(either: Trial) -> None:
    """Case 3."""
    either.serve_file(DATA, cut_after(HALF), *[respond(503)] * 9)
    first = either.run()
    assert first.code == 75
    either.assert_survived(first, OTHER)
    assert either.starts[-1] == 0


def test_file_replaced_within_one_command_is_never_a_mix(either: Trial) -> None:
    """Case 3."""
    either.serve_file(DATA, replace_file(OTHER, HALF))
    run = either.run()
    assert run.code == 0
    assert either.target.read_bytes() == OTHER
    either.assert_survived(run, OTHER)


ANOTHER_ETAG = respond(200, ETag='"another"', Content_Length=str(len(DATA)))


def test_file_with_another_etag_than_announced_is_described_again(plain: Trial) -> None:
    """Case 3. The size is the same, so only the ETag tells the two files apart."""
    plain.serve_file(DATA, heads=(ANOTHER_ETAG,))
    run = plain.run()
    assert [request.method for request in plain.server.log] == ["HEAD", "GET"] * 2
    plain.assert_survived(run)


def test_file_that_never_has_the_announced_etag_is_given_up(plain: Trial) -> None:
    """Case 3."""
    plain.serve_file(DATA, heads=(ANOTHER_ETAG,) * 9)
    first = plain.run()
    assert len(plain.server.gets) == 4
    plain.assert_survived(first, code=75, names=["a.jsonl.zst", "keeps changing"])


@pytest.mark.parametrize(
    ("announced", "sent", "is_same"),
    [
        ('"a"', 'W/"a"', True),
        ('W/"a"', '"a"', True),
        ('W/"a"', 'W/"b"', False),
        ('"a"', "", True),
        ("", '"a"', True),
        ("Fri, 20 Nov 2026 10:00:00 GMT", '"a"', True),
    ],
)
def test_etags_are_compared_weakly(plain: Trial, announced: str, sent: str, is_same: bool) -> None:
    """Case 3. A server that compresses weakens its ETags; a date or no ETag identifies nothing."""
    plain.server.announces, plain.server.headers = "nothing", {"ETag": sent}
    plain.serve_file(DATA, heads=(respond(200, ETag=announced, Content_Length=str(len(DATA))),))
    assert plain.run().code == 0
    assert len(plain.server.gets) == (1 if is_same else 2)
    assert plain.target.read_bytes() == DATA


def test_one_byte_more_than_announced_is_refused(either: Trial) -> None:
    """Case 6. A chunked response has no length of its own."""
    either.serve_file(DATA, send_chunked(DATA, b"!"), send_chunked(DATA + b"!"))
    first = either.run()
    assert either.starts == [0, 0]
    assert faults.published(either.root) == {}
    either.assert_survived(first, code=76, names=[either.path, f"more than the {len(DATA):,} bytes that it announced"])


def test_response_without_a_length_of_its_own_may_have_the_announced_size(either: Trial) -> None:
    """Case 6."""
    either.serve_file(DATA, send_chunked(DATA[:HALF], DATA[HALF:]))
    run = either.run()
    assert either.starts == [0]
    either.assert_survived(run)


def test_file_with_another_length_than_announced_is_described_again(plain: Trial) -> None:
    """Case 3."""
    longer = respond(200, ETag=bad_server.strong_etag(DATA), Content_Length=str(len(DATA) + 1))
    plain.serve_file(DATA, heads=(longer,))
    run = plain.run()
    assert [request.method for request in plain.server.log] == ["HEAD", "GET"] * 2
    plain.assert_survived(run)
    plain.target.unlink()
    plain.serve_file(DATA, heads=(longer, longer))
    numbers = f"{len(DATA):,} bytes but announced {len(DATA) + 1:,}"
    plain.assert_survived(plain.run(), code=76, names=["a.jsonl.zst", numbers], damaged=True)


@pytest.mark.parametrize(("status", "code"), [(404, 69), (410, 69), (401, 77), (403, 77), (400, 76), (405, 76)])
def test_refused_get_of_a_file_that_was_described_ends_the_command(plain: Trial, status: int, code: int) -> None:
    plain.serve_file(DATA, respond(status))
    first = plain.run()
    assert plain.starts == [0]
    plain.assert_survived(first, code=code, names=["a.jsonl.zst", str(status)])


def test_replaced_pinned_file_is_refused(either: Trial) -> None:
    """Case 3."""
    either.serve_file(DATA)
    assert either.run().code == 0
    pinned = faults.published(either.root)
    either.target.unlink()
    either.serve_file(DATA, replace_file(OTHER, HALF))
    first = either.run()
    assert faults.published(either.root) == pinned
    either.assert_survived(first, code=10, names=[either.path, "pinned"], damaged=True)


def test_interrupted_update_keeps_the_old_file(either: Trial) -> None:
    """Case 3."""
    either.serve_file(DATA)
    assert either.run().code == 0
    old = faults.published(either.root)
    either.serve_file(OTHER, cut_after(HALF), *[respond(503)] * 9)
    first = either.run("--update-lock")
    assert first.code == 75
    assert either.target.read_bytes() == DATA
    assert faults.published(either.root) == old
    assert either.run().code == 0  # without --update-lock the old file is still valid
    either.serve_file(OTHER)
    expected = {either.name: hashlib.sha256(OTHER).hexdigest()}
    rerun = functools.partial(either.run, "--update-lock")
    assert_survived(either.root, rerun, expected, [first], code=75, names=[either.path], old=old, secrets=[TOKEN])
    assert either.starts[-1] == HALF


def test_old_file_of_the_same_size_is_not_accepted_as_the_new_one(hub: Trial) -> None:
    """Case 3: a complete part beside the old file, left by a process that ended just before publishing."""
    old, new = DATA, DATA[:-1] + bytes([DATA[-1] ^ 1])
    hub.serve_file(old)
    assert hub.run().code == 0
    partial.part_path(hub.target).write_bytes(new)
    sha256 = hashlib.sha256(new).hexdigest()
    state = partial.PartialState(1, hub.server.url + SHARD, sha256, len(new), "", len(new))
    files.write_file(partial.state_path(hub.target), msgspec.json.encode(state))
    hub.serve_file(new)
    assert hub.run("--update-lock").code == 0
    assert hub.target.read_bytes() == new
    assert len(hub.server.gets) == 1


def test_response_that_ignores_the_range_is_compared_with_the_part(hub: Trial) -> None:
    """Case 4."""
    hub.serve_file(DATA, cut_after(HALF), ignore_range)
    run = hub.run()
    assert run.code == 0
    assert [bool(request.range) for request in hub.server.gets] == [False, True]
    hub.assert_survived(run)


def test_equal_pieces_after_the_part_are_all_kept(plain: Trial) -> None:
    data = DATA[:4] + b"x" * 200_000 + noise(KIB)
    plain.serve_file(data, cut_after(len(data) // 2), ignore_range)
    run = plain.run()
    assert plain.target.read_bytes() == data
    plain.assert_survived(run, data)


def test_part_is_replaced_from_the_first_difference_on(hub: Trial) -> None:
    """Case 4."""
    hub.serve_file(DATA, flip_bit(1000, cut=HALF), ignore_range)
    run = hub.run()
    assert run.code == 0
    assert len(hub.server.gets) == 2, "the second response was enough"
    assert hub.quarantined == []
    hub.assert_survived(run)


def test_truncated_full_response_keeps_the_part(hub: Trial) -> None:
    """Case 4."""
    hub.serve_file(DATA, cut_after(HALF), lambda handler: cut_without_length(1000)(handler))
    run = hub.run()
    assert hub.starts == [0, HALF, HALF]
    hub.assert_survived(run)


@pytest.mark.parametrize(
    "span",
    [f"bytes {HALF + 1}-{len(DATA) - 1}/{len(DATA)}", f"bytes {HALF}-{len(DATA)}/{len(DATA) + 1}", "", "bytes ²-3/4"],
)
def test_response_with_another_range_is_never_appended(either: Trial, span: str) -> None:
    """Case 5."""
    either.serve_file(DATA, cut_after(HALF), respond_range(span))
    run = either.run()
    assert (run.code, either.starts) == (0, [0, HALF, HALF])
    either.assert_survived(run)


def test_second_wrong_range_raises_protocol_broken(either: Trial) -> None:
    """Case 5."""
    either.serve_file(DATA, cut_after(HALF), *[respond_range("bytes 5-9/10")] * 9)
    first = either.run()
    assert len(either.starts) == 3
    either.assert_survived(
        first,
        code=76,
        names=[either.path],
        bytes_fetched_twice=lambda: either.server.sent - len(DATA),
        max_fetched_twice=2 * 11,
    )


def test_416_with_the_size_of_the_part_completes_the_transfer(plain: Trial) -> None:
    """Case 6."""
    headers = {"ETag": bad_server.strong_etag(DATA)}
    plain.serve_file(
        DATA,
        send_chunked(DATA, is_complete=False, **headers),
        heads=(respond(200, ETag=headers["ETag"], Content_Length=""),),
    )
    run = plain.run()
    assert [(request.status, request.start) for request in plain.server.gets] == [(200, 0), (416, len(DATA))]
    plain.assert_survived(run, bytes_fetched_twice=lambda: plain.server.sent - len(DATA))


def test_416_with_a_smaller_size_restarts_the_transfer(either: Trial) -> None:
    """Case 6."""
    either.serve_file(DATA, cut_after(HALF), respond(416, Content_Range=f"bytes */{HALF - 1}"))
    run = either.run()
    assert either.starts == [0, HALF, 0]
    either.assert_survived(run)


def test_server_that_never_has_the_rest_raises_protocol_broken(either: Trial) -> None:
    """Case 6."""
    nothing_more = respond(416, Content_Range="bytes */nothing")
    either.serve_file(DATA, cut_after(HALF), nothing_more, cut_after(HALF), nothing_more)
    either.assert_survived(either.run(), code=76, names=[either.path, "416"])


def test_with_a_known_hash_no_etag_is_sent(hub: Trial) -> None:
    """Case 7."""

    def another_etag_each_time(handler: Handler) -> None:
        handler.server.headers["ETag"] = f'"{len(handler.server.log)}"'
        serve(handler, cut=HALF if len(handler.server.gets) == 1 else None)

    hub.serve_file(DATA, *[another_etag_each_time] * 3, heads=(another_etag_each_time,))
    run = hub.run()
    assert hub.starts == [0, HALF]
    assert not any("If-Range" in request.headers for request in hub.server.log)
    hub.assert_survived(run, bytes_fetched_twice=lambda: hub.server.sent - len(DATA))


def test_without_a_hash_the_strong_etag_is_sent(plain: Trial) -> None:
    """Case 7."""
    plain.serve_file(DATA, cut_after(HALF))
    run = plain.run()
    assert plain.server.gets[1].headers["If-Range"] == bad_server.strong_etag(DATA)
    plain.assert_survived(run)


@pytest.mark.parametrize("headers", [{"ETag": 'W/"weak"'}, {"Last-Modified": "Fri, 20 Nov 2026 10:00:00 GMT"}, {}])
def test_weak_etag_or_date_does_not_allow_resuming(plain: Trial, headers: dict[str, str]) -> None:
    """Case 7."""
    plain.server.announces, plain.server.headers = "nothing", headers
    plain.serve_file(DATA, cut_after(HALF), cut_after(HALF), *[respond(503)] * 9)
    first = plain.run()
    assert plain.starts[:2] == [0, 0]
    assert faults.leftovers(plain.root) == []  # a part that cannot be resumed is deleted
    plain.assert_survived(first, code=75, names=[plain.path])
    assert plain.starts[-1] == 0


def test_response_with_content_encoding_is_refused(either: Trial) -> None:
    """Case 8."""
    either.serve_file(DATA, *[compress_body] * 9)
    first = either.run()
    assert {request.headers["Accept-Encoding"] for request in either.server.log} == {"identity"}
    either.assert_survived(first, code=76, names=[either.path, "compressed the response"])


# Cases 9 and 10: other content than published


def test_one_wrong_bit_is_repaired_by_fetching_again(hub: Trial) -> None:
    """Case 9."""
    hub.serve_file(DATA, flip_bit(HALF))
    run = hub.run()
    assert run.code == 0
    (bad,) = hub.quarantined
    assert [at for at, (first_data, second) in enumerate(zip(bad, DATA, strict=True)) if first_data != second] == [HALF]
    hub.assert_survived(run)


def test_wrong_bits_twice_raise_bad_data(hub: Trial) -> None:
    """Case 9."""
    hub.serve_file(DATA, *[flip_bit(HALF)] * 9)
    first = hub.run()
    assert len(hub.server.gets) == 2
    assert len(hub.quarantined) == 1
    hub.assert_survived(first, code=65, names=[hub.path, "quarantine/"])


def test_wrong_bit_in_an_earlier_part_is_detected(hub: Trial) -> None:
    """Case 9."""
    hub.serve_file(DATA, cut_after(HALF), *[respond(503)] * 9)
    first = hub.run()
    with open(partial.part_path(hub.target), "r+b") as part:
        part.seek(1000)
        part.write(bytes([DATA[1000] ^ 1]))
    hub.assert_survived(first)
    assert len(hub.quarantined) == 1


@pytest.mark.parametrize(
    ("commit", "sha256", "is_refused"),
    [("c1", "b", True), ("", "b", True), ("c2", "b", False), ("c1", "a", False), ("c1", "", False)],
)
def test_one_commit_has_one_content(commit: str, sha256: str, is_refused: bool) -> None:
    url = "http://files.invalid/a.txt"
    client: Any = SimpleNamespace(describe=lambda url: RemoteFile(url, sha256=sha256, commit=commit))
    part: Any = SimpleNamespace(truncate=lambda size: None)
    old = RemoteFile(url, sha256="a", commit="c1")
    started = transfer._Transfer(client, url, old, Path("a.txt"), part, Network(), lambda count: None, "", 0)
    with pytest.raises(BadData, match="for the same commit") if is_refused else nullcontext():
        started._start_over()


PORTAL = respond(200, b"<html>Log in to the hotel's network</html>", Content_Type="text/html; charset=utf-8")
PORTAL_WITHOUT_TYPE = respond(200, b"<html>Log in to the hotel's network</html>")


@pytest.mark.parametrize("heads", [(PORTAL,), (), (respond(405),)], ids=["also HEAD", "not HEAD", "HEAD says nothing"])
def test_captive_portal_is_not_accepted_as_a_shard(either: Trial, heads: tuple[Action, ...]) -> None:
    """Case 10."""
    either.serve_file(DATA, *[PORTAL] * 9, heads=heads)
    first = either.run()
    assert not either.root.exists() or faults.leftovers(either.root) == []
    either.assert_survived(first, code=75, names=[either.path, "a web page"])


def test_captive_portal_without_content_type_is_not_accepted(either: Trial) -> None:
    """Case 10."""
    either.serve_file(DATA, *[PORTAL_WITHOUT_TYPE] * 9, heads=(respond(405),))
    first = either.run()
    assert faults.leftovers(either.root) == []
    either.assert_survived(first, code=75, names=[either.path, "data that is not zstd"])


def test_response_shorter_than_the_first_bytes_of_zstd_is_not_accepted(either: Trial) -> None:
    either.serve_file(DATA, *[respond(200, b"ab")] * 9, heads=(respond(405),))
    either.assert_survived(either.run(), code=75, names=[either.path, "data that is not zstd (2 bytes)"])


@pytest.mark.parametrize("cut", [1, 3])
def test_first_bytes_of_a_page_are_not_part_of_the_file(either: Trial, cut: int) -> None:
    """Case 10."""
    page = functools.partial(serve, cut=cut, change=lambda body: b"<html>".ljust(len(body)))
    either.serve_file(DATA, page)
    first = either.run()
    assert either.starts == [0, cut]
    either.assert_survived(first, code=75, names=[either.path, "data that is not zstd"])


def test_captive_portal_is_not_taken_for_a_shrunk_file(either: Trial) -> None:
    """Case 10."""
    either.serve_file(DATA)
    assert either.run().code == 0
    old = faults.published(either.root)
    either.serve_file(DATA, PORTAL, heads=(PORTAL,))
    either.assert_survived(either.run("--update-lock"), code=75, names=["a web page"], old=old)


# Cases 11 to 13: waiting and retrying


def test_busy_server_is_retried_after_the_requested_wait(either: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 11."""
    waits: list[float] = []
    monkeypatch.setattr(Network, "sleep", lambda network, seconds, where: waits.append(seconds))
    monkeypatch.setenv("NO_PROXY", "*")
    busy = [
        respond(503),
        respond(429, Retry_After="7"),
        cut_after(HALF),
        respond(408),
        respond(500, Retry_After="9999"),
        respond(425),
    ]
    either.serve_file(DATA, *busy, heads=(respond(503, Retry_After="11"),))
    fetch_in_process(either, either.root)
    assert [wait for wait in waits if wait > 5] == [11, 7, 300]
    assert either.starts == [0, 0, 0, HALF, HALF, HALF, HALF]
    assert either.target.read_bytes() == DATA


def test_wait_beyond_the_deadline_ends_the_command(either: Trial) -> None:
    """Case 11."""
    either.serve_file(DATA, respond(429, Retry_After="100"))
    first = either.run("--deadline", "20")
    assert first.seconds < 10
    either.assert_survived(first, code=75, names=[either.path, "--deadline"])


SHORT = {
    "pipeline__sources__http___READ_TIMEOUT": 0.3,
    "pipeline__sources__http___MAX_IDLE": 0.2,
    "pipeline__sources__transfer___SLOW_SECONDS": 0.4,
}


@pytest.mark.parametrize("after", [0, 1000])
def test_server_that_stalls_is_retried_and_then_given_up(either: Trial, after: int) -> None:
    """Case 12."""
    either.serve_file(DATA, *[stall(after)] * 9)
    first = either.run(**SHORT)
    assert 1 < len(either.server.gets) < 9
    either.assert_survived(first, code=75, names=[either.path, "no answer for too long"])


def test_server_that_never_answers_is_retried_and_then_given_up(either: Trial) -> None:
    """Case 12."""

    def silent(handler: Handler) -> None:
        handler.server.stopping.wait()

    either.serve_file(DATA, heads=(silent,) * 9)
    first = either.run(**SHORT)
    assert 1 < len(either.server.log) < 9
    either.assert_survived(first, code=75, names=[either.path, "no answer for too long"])


def test_trickling_server_is_retried_and_then_given_up(either: Trial) -> None:
    """Case 12."""
    either.serve_file(DATA, *[trickle(1, 0.05)] * 9)
    first = either.run(**SHORT)
    assert 1 < len(either.server.gets) < 9
    either.assert_survived(first, code=75, names=[either.path, "received only"])
    assert either.starts[-1] > 0  # the bytes received were kept


def test_server_that_is_slow_but_fast_enough_is_not_interrupted(plain: Trial) -> None:
    plain.serve_file(DATA, trickle(80 * KIB, 0.02))
    slow = {"pipeline__sources__transfer___SLOW_SECONDS": 0.01, "pipeline__sources__transfer___SLOW_BYTES": KIB}
    assert plain.run(**slow).code == 0
    assert plain.starts == [0]


def test_rate_limit_slows_the_transfer_down(plain: Trial) -> None:
    plain.serve_file(DATA)
    run = plain.run("--limit-rate", "400K")  # for 200 KiB
    assert 0.4 < run.seconds < 20
    plain.assert_survived(run)


def stall_late(handler: Handler) -> None:
    """Send little for a while, then nothing."""
    handler.begin(200, {"Content-Length": str(len(DATA)), **handler.server.metadata_of(DATA)})
    for offset in range(17):
        handler.send(DATA[offset : offset + 1])
        handler.server.stopping.wait(0.1)
    handler.server.stopping.wait()


@pytest.mark.parametrize("act", [stall_late, trickle(1, 0.05)], ids=["silent in the end", "trickling"])
def test_deadline_holds_for_stalling_and_trickling_servers(either: Trial, act: Action) -> None:
    """Case 12."""
    either.serve_file(DATA, *[act] * 9)
    first = either.run("--deadline", "2")
    assert 1.9 < first.seconds < 3.2
    either.assert_survived(first, code=75, names=[either.path, "--deadline"])


def test_response_without_length_ended_by_the_deadline_is_not_complete(server: Server, root: Path) -> None:
    """Case 12."""

    def endless(handler: Handler) -> None:
        handler.begin(200, {})
        handler.send(b"the first line\n")
        handler.server.stopping.wait()

    server.announces = "nothing"
    server.files["/a.txt"], server.scripts["/a.txt"], server.heads["/a.txt"] = b"all of it", [endless], [respond(405)]
    command = Command(root, ("download", f"{server.url}/a.txt", "--deadline", "1"), {}, CONSTANTS)
    expected = {"raw/a/a.txt": hashlib.sha256(b"all of it").hexdigest()}
    assert_survived(root, command.run, expected, [command.run()], code=75, names=["/a.txt", "--deadline"])


def test_expired_signed_link_is_requested_again(hub: Trial) -> None:
    """Case 13."""
    with bad_server.running_server() as store:
        signed = [f"/blob?X-Amz-Signature=secret{number}" for number in range(4)]
        links = [redirect(store.url + path, **as_names(bad_server.hub_headers(DATA))) for path in signed]
        hub.serve_file(DATA, *links)
        store.files |= dict.fromkeys(signed, DATA)
        store.scripts[signed[0]] = [cut_after(HALF), respond(403)]
        store.scripts[signed[1]] = [respond(403)]
        run = hub.run("--allow-host", f"127.0.0.1:{store.server_port}")
        assert run.code == 0
        assert [(request.path, request.start) for request in store.gets] == [
            (signed[0], 0),
            (signed[1], HALF),
            (signed[2], HALF),
        ]
        assert not any("Authorization" in request.headers for request in store.log)
        hub.assert_survived(
            run, secrets=(TOKEN, "Signature", "secret"), bytes_fetched_twice=lambda: store.sent - len(DATA)
        )


def test_signed_link_that_is_never_valid_is_given_up(hub: Trial) -> None:
    """Case 13."""
    with bad_server.running_server() as store:
        link = redirect(f"{store.url}/thread?X-Amz-Signature=secret", **as_names(bad_server.hub_headers(DATA)))
        hub.serve_file(DATA, *[link] * 9)
        store.scripts["/thread?X-Amz-Signature=secret"] = [respond(403)] * 9
        first = hub.run("--allow-host", f"127.0.0.1:{store.server_port}")
    hub.assert_survived(first, code=75, names=[hub.path, "403"], secrets=(TOKEN, "Signature", "secret"))


def as_names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in headers.items()}


# Cases 17 to 20: the disk


def test_too_small_disk_is_refused_before_any_write(hub: Trial) -> None:
    """Case 17."""
    with faults.tmpfs(hub.root, "2m"):
        hub.serve_file(DATA)
        first = hub.run()
        assert list(hub.root.iterdir()) == []
        assert hub.server.gets == []
        assert "0.07 GB needed, 0.00 GB free" in first.err
    hub.assert_survived(first, code=74, names=[str(hub.root)])


NO_RESERVE = {"pipeline__sources__partial__RESERVE": 0}


@pytest.mark.parametrize("trial", ["hub", "plain"])
def test_disk_full_during_the_transfer_keeps_the_durable_bytes(trial: str, request: pytest.FixtureRequest) -> None:
    """Case 18."""
    either: Trial = request.getfixturevalue(trial)
    data, filler = zstd(1500 * KIB, 3), either.root / "filler"

    def fill() -> None:
        """Fill the disk, as another process might."""
        with open(filler, "wb", buffering=0) as out, suppress(OSError):
            while out.write(bytes(4096)):
                pass

    def full_after_a_third(handler: Handler) -> None:
        handler.begin(200, {"Content-Length": str(len(data)), **handler.server.metadata_of(data)})
        handler.send(data[: len(data) // 3])
        wait_for(lambda: partial.state_path(either.target).exists())
        fill()
        handler.send(data[len(data) // 3 :])

    with faults.tmpfs(either.root, "3m"):
        either.serve_file(data, full_after_a_third)
        first = either.run(**NO_RESERVE)
        durable = state_of(either)["durable"]
        assert 0 < durable <= len(data) // 3 + INTERVAL
        assert partial.part_path(either.target).read_bytes()[:durable] == data[:durable]
        filler.unlink()
        either.serve_file(data)
        expected = {either.name: hashlib.sha256(data).hexdigest()}
        rerun = functools.partial(either.run, **NO_RESERVE)
        names = [either.target.name, "no space left"]
        assert_survived(either.root, rerun, expected, [first], code=74, names=names, secrets=[TOKEN])
        assert either.starts[-1] == durable


# Small pieces cause many disk operations.
SMALL, MEDIUM = zstd(3 * INTERVAL), zstd(6 * INTERVAL)
PIECE = 4 * KIB
FINE = {**CONSTANTS, "pipeline.sources.transfer._CHUNK": PIECE}


@dataclass
class RefetchedBytes:
    """Count the bytes that a command requests although an earlier one had written them."""

    trial: Trial

    def __post_init__(self) -> None:
        part, target = files.file_size(partial.part_path(self.trial.target)), files.file_size(self.trial.target)
        self.written, self.before = part or target or 0, len(self.trial.starts)

    def __call__(self) -> int:
        new_starts = self.trial.starts[self.before :]
        return self.written - new_starts[0] if new_starts else 0


def source_of(trial: Trial) -> Source:
    (reference, *options) = trial.command.arguments[1:]
    return catalogue.resolve_source(str(reference), shards=str(options[1]) if options else "", mirror=trial.server.url)


def fetch_in_process(trial: Trial, root: Path, **options: Any) -> Run:
    """Run the download in this process."""
    download.download(root, source_of(trial), SilentProgress(), **options)
    return Run(0, "", "")


@pytest.fixture
def fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the constants in `FINE` in this process."""
    monkeypatch.setenv("NO_PROXY", "*")
    for name, value in FINE.items():
        monkeypatch.setattr(name, value)


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize(
    ("trial", "kind"), [("hub", "kill"), *[("plain", kind) for kind in ("ENOSPC", "EIO", "kill", "torn")]]
)
def test_command_after_any_disk_fault_succeeds(trial: str, kind: str, request: pytest.FixtureRequest) -> None:
    """Cases 18, 19 and 22. As SQLite tests it: fail the first operation, then the second, until a run succeeds."""
    either: Trial = request.getfixturevalue(trial)
    expected = {either.name: hashlib.sha256(SMALL).hexdigest()}
    codes = set()

    def attempt(number: int) -> bool:
        either.serve_file(SMALL)
        root = either.root.with_name(f"artifacts-{number}")
        trial = replace(either, root=root, command=replace(either.command, root=root, constants=FINE))
        operation = "write" if kind == "torn" else "any"
        first = trial.command.run_forked(Fault(operation, number, kind, lasting=kind == "ENOSPC"))
        codes.add(first.code)
        through = first.code == 0
        failed: dict[str, Any] = {} if through or first.code == -9 else {"code": 74, "names": [root.name]}
        refetched, rerun = RefetchedBytes(trial), functools.partial(fetch_in_process, trial, root)
        assert_survived(
            root,
            rerun,
            expected,
            [first],
            bytes_fetched_twice=refetched,
            max_fetched_twice=INTERVAL + PIECE,
            secrets=[TOKEN],
            **failed,
        )
        return not through

    assert faults.sweep(attempt) > 12
    assert codes == {0, 74 if kind.startswith("E") else -9}


@pytest.mark.usefixtures("fine")
def test_failed_sync_is_not_retried(either: Trial) -> None:
    """Case 19."""
    either.serve_file(SMALL)
    others = 0 if "pile" in either.name else 2  # of .origin, which the Pile does not need
    broken = faults.FaultyDisk(Fault("sync", 4 + others, "EIO"))
    with faults.disk(broken), pytest.raises(OSError, match="nput/output error"):
        fetch_in_process(either, either.root)
    failed = [operation.path for operation in broken.log if operation.kind == "sync"][-1]
    assert failed == partial.part_path(either.target)
    durable = state_of(either)["durable"]
    assert 0 < durable < len(SMALL)
    assert files.file_size(partial.part_path(either.target)) == durable + INTERVAL
    fetch_in_process(either, either.root)
    assert either.starts[-1] == durable
    assert either.target.read_bytes() == SMALL


def test_failing_fsync_ends_the_command(either: Trial) -> None:
    """Case 19."""
    either.serve_file(SMALL)
    command = replace(either.command, before=faults.injected("fsync", "error=EIO:when=4"), constants=FINE)
    first = command.run()
    durable = state_of(either)["durable"]
    assert 0 < durable < len(SMALL)
    either.assert_survived(
        first,
        SMALL,
        code=74,
        names=[either.target.name],
        bytes_fetched_twice=RefetchedBytes(either),
        max_fetched_twice=INTERVAL + PIECE,
    )
    assert either.starts[-1] == durable


def write_state(after: Mapping[Path, bytes], old: Path, new: Path) -> None:
    """Write the files left by a power cut below `old` to the same paths below `new`."""
    for path, data in after.items():
        new_path = new / path.relative_to(old)
        new_path.parent.mkdir(parents=True, exist_ok=True)
        new_path.write_bytes(data)


@pytest.mark.usefixtures("fine")
def test_command_after_a_power_cut_at_any_point_succeeds(either: Trial) -> None:
    """Case 20: every state in which synced data survives, derived from the log of one run."""
    either.serve_file(SMALL)
    watched = faults.LoggingDisk()
    with faults.disk(watched):
        fetch_in_process(either, either.root)
    expected, states = faults.published(either.root), faults.power_cuts(watched.log, {})
    assert len(states) > 20
    for number, after in enumerate(states):
        root = either.root.with_name(f"artifacts-{number}")
        write_state(after, either.root, root)
        trial = replace(either, root=root)
        if partial.state_path(trial.target).exists() and (part := partial.part_path(trial.target)).exists():
            durable = state_of(trial)["durable"]
            assert part.read_bytes()[:durable] == SMALL[:durable]
            assert len(part.read_bytes()) >= durable
        faults.assert_published(root, (expected,), {})
        refetched = RefetchedBytes(trial)
        fetch_in_process(either, root)
        assert faults.published(root) == expected
        faults.assert_published(root, (expected,), expected)
        assert faults.leftovers(root) == []
        assert refetched() <= INTERVAL + PIECE


@pytest.mark.usefixtures("fine")
def test_part_after_a_power_cut_belongs_to_the_file_in_its_state(plain: Trial) -> None:
    """Case 20: the server changes from A to B, of the same size, and back, while half of one is stored."""
    first_data, second = SMALL, bytes(reversed(SMALL[4:])).join((SMALL[:4], b""))
    assert (len(first_data), first_data[:4]) == (len(second), second[:4])
    for data in (first_data, second):
        watched = faults.LoggingDisk()
        before = {path: path.read_bytes() for path in plain.root.rglob("*.part*")}
        plain.serve_file(data, cut_after(len(first_data) // 2), *[respond(403)] * 9)
        with faults.disk(watched), pytest.raises(NotPermitted):
            fetch_in_process(plain, plain.root)
    states = faults.power_cuts(watched.log, before)
    assert len(states) > 8
    plain.serve_file(first_data)
    for number, after in enumerate(states):
        root = plain.root.with_name(f"artifacts-{number}")
        write_state(after, plain.root, root)
        fetch_in_process(plain, root)
        assert (root / plain.name).read_bytes() == first_data


def test_command_after_a_power_cut_on_ext4_succeeds(hub: Trial, tmp_path: Path) -> None:
    """Case 20."""
    hub.serve_file(DATA, trickle(2 * KIB, 0.005))
    with faults.ext4(hub.root, tmp_path / "image"):
        process = replace(hub.command, constants={**FINE, **{"pipeline.sources.partial.RESERVE": 0}}).start()
        written = partial.part_path(hub.target)
        wait_for(lambda: written.exists() and written.stat().st_size > 3 * INTERVAL)
        with faults.paused(process), faults.power_cut(tmp_path / "image", tmp_path / "cut" / "artifacts") as root:
            cut = replace(hub, root=root, command=replace(hub.command, root=root))
            durable, part = state_of(cut)["durable"], partial.part_path(cut.target).read_bytes()
            assert INTERVAL <= durable <= len(part)
            assert part[:durable] == DATA[:durable]
            assert written.stat().st_size - durable <= 2 * INTERVAL + PIECE
            killed = faults.kill(process)
            cut.serve_file(DATA)
            rerun = functools.partial(cut.run, **NO_RESERVE)
            expected = {hub.name: hashlib.sha256(DATA).hexdigest()}
            assert_survived(root, rerun, expected, [killed], secrets=[TOKEN])
            assert hub.starts == [0, durable]


# Cases 21 and 22: processes


def test_two_commands_fetch_a_file_once(either: Trial) -> None:
    """Case 21."""
    either.serve_file(DATA, trickle(4 * KIB, 0.02))
    first = either.command.start()
    wait_for(lambda: either.server.gets)
    second = either.run()
    faults.assert_one_error(second, 75, [str(either.target.parent), f"process {first.pid}", "download"])
    first_run = faults.wait_for(first)
    assert first_run.code == 0
    assert len(either.server.gets) == 1
    either.assert_survived(second, code=75, old=faults.published(either.root))
    assert len(either.server.gets) == 1


@pytest.mark.usefixtures("fine")
@pytest.mark.parametrize("update", [False, True])
def test_file_fetched_by_another_process_is_not_fetched_again(either: Trial, update: bool) -> None:
    """Case 21: the check ran while the other process fetched, which then released the lock."""
    source = source_of(either)
    if update:
        either.serve_file(OTHER)
        fetch_in_process(either, either.root)
    either.serve_file(DATA)
    statuses = download.check_upstream(either.root, source, Network(), update=update)
    fetch_in_process(either, either.root, update=update)
    request_count = len(either.server.gets)
    result = download.fetch_missing(either.root, source, statuses, SilentProgress(), Network(), jobs=1, update=update)
    assert (result.fetched, result.unchanged) == (0, 1)
    assert len(either.server.gets) == request_count
    assert either.target.read_bytes() == DATA


@pytest.mark.usefixtures("fine")
def test_kill_at_any_byte_loses_at_most_one_interval(either: Trial) -> None:
    """Case 22."""
    draw, kills, roots = random.Random(22), 0, 0
    expected = {either.name: hashlib.sha256(MEDIUM).hexdigest()}
    resumed = 0
    while kills < 25:  # per kind of server
        roots += 1
        root = either.root.with_name(f"artifacts-{roots}")
        trial = replace(either, root=root, command=replace(either.command, root=root, constants=FINE))
        run = Run(0, "", "")
        for _ in range(5):
            trial.serve_file(MEDIUM, trickle(512, 0.002))
            refetched = RefetchedBytes(trial)
            run = trial.command.run_forked(kill_after=draw.uniform(0.02, 0.15))
            assert run.code in (0, -9), run.err
            assert refetched() <= INTERVAL + PIECE
            resumed += refetched.written > 0 and run.code == -9
            kills += run.code == -9
        trial.serve_file(MEDIUM)
        refetched, rerun = RefetchedBytes(trial), functools.partial(fetch_in_process, trial, root)
        assert_survived(
            root,
            rerun,
            expected,
            [run],
            bytes_fetched_twice=refetched,
            max_fetched_twice=INTERVAL + PIECE,
            secrets=[TOKEN],
        )
    assert resumed > 5


# Other invariants


def test_unreadable_state_discards_only_the_part(either: Trial) -> None:
    for torn in (b"", b"{", b'{"schema": 1}', b"\xff", json.dumps({"schema": 9}).encode(), b"[" * 100_000):
        either.serve_file(DATA, cut_after(HALF), *[respond(503)] * 9)
        either.command.run_forked()
        partial.state_path(either.target).write_bytes(torn)
        either.serve_file(DATA)
        assert either.command.run_forked().code == 0
        assert either.target.read_bytes() == DATA
        assert either.starts[-1] == 0
        either.target.unlink()
        (either.target.parent / LOCK_FILE).unlink()


def test_state_that_claims_more_bytes_than_the_part_is_corrected(either: Trial) -> None:
    either.serve_file(DATA, cut_after(HALF), *[respond(503)] * 9)
    first = either.run()
    os.truncate(partial.part_path(either.target), 1000)
    either.assert_survived(first)
    assert either.starts[-1] == 1000


def test_part_of_another_file_is_never_resumed(plain: Trial) -> None:
    """The server changes from A to B and back, and the command is killed each time."""
    plain.serve_file(DATA, cut_after(HALF), *[respond(503)] * 9)
    assert plain.run().code == 75
    assert OTHER[:1000] != DATA[:1000]
    plain.serve_file(OTHER[: len(DATA)].ljust(len(DATA), b"!"), trickle(KIB, 0.01))
    process = plain.command.start()
    wait_for(lambda: (files.file_size(partial.part_path(plain.target)) or HALF) not in (0, HALF))
    plain.assert_survived(faults.kill(process))
