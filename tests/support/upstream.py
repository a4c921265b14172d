"""An upstream on this machine, and a recipe that is refreshed from it: all that a nightly refresh has, in small.

The hub serves the Pile's paths as the Hugging Face hub does: what a file is stands in the headers, each state of the
repository has a commit, and a commit serves what it served when it was made.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline.maintenance import verify
from pipeline.readers import jsonl
from pipeline.store import artifact, files, locks
from pipeline.store.manifest import Identity
from pipeline.tokenizers import Characters

ROOT = Path(__file__).resolve().parents[2]
_PATH = re.compile(r"/datasets/monology/pile-uncopyrighted/resolve/([^/]+)/(.+)")
# One process and few imports: units and pieces so small that a small file has several of them.
_DRIVER = """
import sys
from pipeline.tokens import chunks as pieces, stage as tokenize
pieces.UNIT_BYTES, pieces.PIECE_BYTES, tokenize._SMALL = {unit}, {piece}, 0
import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@dataclass
class Hub:
    """What upstream has. `linked`: whether it publishes hashes, or only strong ETags. `pace`: seconds before each
    16 KiB that it sends. `asked` are the requests so far: method, name, first byte."""

    linked: bool = True
    pace: float = 0.0
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""
    _files: dict[str, bytes] = field(default_factory=dict)
    _commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def put(self, name: str, data: bytes | Iterable[str]) -> None:
        """Let a file have these bytes, or these documents."""
        self._commit({**self._files, name: data if isinstance(data, bytes) else packed(data)})

    def remove(self, name: str) -> None:
        self._commit({other: data for other, data in self._files.items() if other != name})

    def _commit(self, tree: dict[str, bytes]) -> None:
        self._files = tree
        self._commits[self.commit] = tree

    @property
    def commit(self) -> str:
        told = hashlib.sha1()
        for name, data in sorted(self._files.items()):
            told.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return told.hexdigest()

    def read(self, revision: str, name: str) -> bytes | None:
        return (self._files if revision == "main" else self._commits.get(revision, {})).get(name)

    @property
    def names(self) -> list[str]:
        return sorted(self._files)

    def size(self, name: str) -> int:
        return len(self._files[name])


def packed(texts: Iterable[str]) -> bytes:
    """JSON lines of documents, compressed."""
    lines = b"".join(jsonl.json_line(text, "", "", None) for text in texts)
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(lines)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        asked = _PATH.fullmatch(self.path)
        data = self.hub.read(asked[1], asked[2]) if asked else None
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        self.hub.asked.append((self.command, asked[2] if asked else self.path, start))
        if data is None or start > len(data):
            self.send_response(404 if data is None else 416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        sha256 = hashlib.sha256(data).hexdigest()
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{sha256[:32]}"')
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.hub.linked:
            self.send_header("X-Linked-Etag", f'"{sha256}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Repo-Commit", self.hub.commit)
        self.end_headers()
        for place in range(start, len(data) if with_body else 0, 1 << 14):
            time.sleep(self.hub.pace)
            self.wfile.write(data[place : place + (1 << 14)])

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` under its `url` while the block runs."""
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub})) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def letters(folder: Path, alphabet: Iterable[str] = map(chr, range(32, 127))) -> Path:
    """A tokenizer of single characters, published below `folder`: nothing is made or loaded faster."""

    def write(draft: Path) -> artifact.Content:
        Characters("".join(alphabet), "letters").save(draft)
        return artifact.Content({})

    identity = Identity("tokenizers", "letters", {}, ())
    return artifact.build(folder, identity, write).artifact.path


def texts(name: str, count: int = 60, edition: int = 0) -> list[str]:
    """Documents that only the file `name` has, in one of many editions."""
    return [
        f"{name} edition {edition} document {number} " + "of some length " * (number % 7) for number in range(count)
    ]


@dataclass(frozen=True)
class Nightly:
    """A recipe over a hub, and how it is refreshed. `environment` is all that its process has."""

    recipe: Path
    environment: Mapping[str, str]
    through: str = "tokenize"
    unit: int = 1 << 12
    piece: int = 1 << 11

    def command(self, root: Path, *arguments: object) -> list[str]:
        driver = _DRIVER.format(unit=self.unit, piece=self.piece)
        refresh = ("refresh", self.recipe, "--through", self.through, *arguments)
        return [sys.executable, "-c", driver, "--artifacts", str(root), *map(str, refresh)]

    def start(self, root: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Start a refresh in a process group of its own."""
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
        command = self.command(root, *arguments)
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, text=True, start_new_session=True, **given)

    def run(self, root: Path, *arguments: object, code: int = 0, **options: Any) -> Said:
        """Refresh, with --json, and be sure of the exit code."""
        with self.start(root, "--json", *arguments, **options) as process:
            printed, said = process.communicate(timeout=120)
        assert process.returncode == code, f"{process.returncode}, not {code}: {said}"
        return Said(json.loads(printed) if printed else {}, said or "")


@dataclass(frozen=True)
class Said:
    """The one JSON object that a command printed, and what it said on stderr."""

    told: dict[str, Any]
    stderr: str

    @property
    def results(self) -> dict[str, str]:
        return {stage["stage"]: stage["result"] for stage in self.told["stages"]}

    def assert_refused(self) -> None:
        """One line that names what is wrong and what to do next, and no traceback."""
        assert self.told["result"] == "failed"
        assert self.told["error"]
        assert self.told["hint"]
        last = self.stderr.rstrip().splitlines()[-1]
        assert last == f"error: {self.told['error']} — {self.told['hint']}"
        assert "Traceback" not in self.stderr


def environment(hub: Hub) -> dict[str, str]:
    """What a refresh from `hub` needs to have in its environment, and no more."""
    kept = {
        name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH", "TIKTOKEN_CACHE_DIR") if name in os.environ
    }
    return {**kept, "HF_ENDPOINT": hub.url, "HF_TOKEN": SECRET, "OMP_WAIT_POLICY": "PASSIVE"}


SECRET = "hf_neverToBeSeenAnywhere"


def nightly(folder: Path, hub: Hub, *, shards: str = "0-2,val", lines: Sequence[str] = (), **options: Any) -> Nightly:
    """A recipe of the Pile that tokenizes `shards` by characters. `lines` go to its section [tokenize]."""
    path = folder / "small.toml"
    text = f"""
name = "small"
[download]
source = "pile"
shards = "{shards}"
[tokenizer]
use = "{letters(folder / "letters")}"
[tokenize]
{chr(10).join(lines)}
[train]
preset = "mini"
steps = 4
[train.set]
vocab_size = 0
eval_bytes = 2000
dropout = 0.1
"""
    path.write_text(text, encoding="utf-8")
    return Nightly(path, environment(hub), **options)


def fill(hub: Hub, shards: int = 3, count: int = 60) -> None:
    """Some training shards and a validation file."""
    for number in range(shards):
        hub.put(f"train/{number:02d}.jsonl.zst", texts(f"shard {number}", count))
    hub.put("val.jsonl.zst", texts("held out", 8))


# What a refresh leaves


def published(root: Path) -> dict[str, str]:
    """The sha256 of every file of every current generation, manifests included, below the key; and of the raw files.

    What `run.json` tells is of the run and not of the bytes.
    """
    found = {}
    for link in sorted(root.glob("*/*/current")):
        folder = link.resolve()
        for path in sorted(each for each in folder.rglob("*") if each.is_file() and each.name != "run.json"):
            found[f"{folder.relative_to(root.resolve())}/{path.relative_to(folder)}"] = files.sha256_of(path)
    return found


def generation(root: Path, kind: str = "tokens", name: str = "small") -> artifact.Artifact | None:
    """The current generation, None where there is none yet."""
    return artifact.current(root, kind, name)


def leftovers(root: Path) -> list[str]:
    """Temporary names that nothing should leave behind once a refresh has ended well."""
    marks, ends = (files.TEMPORARY, files.TRASH, ".draft-", artifact.SCRATCH), (".part", ".part.json")
    found = (path for path in root.rglob("*") if path.name.startswith(marks) or path.name.endswith(ends))
    return sorted(path.relative_to(root).as_posix() for path in found)


def assert_survived(root: Path, *digests: str) -> None:
    """All that is published is whole, byte for byte, and no lock is held (I1, I6).

    Every generation of tokens is one of `digests`, if they are given. A raw file may be there whose pin is not yet
    written: no stage reads it before that, and the next download pins it.
    """
    for name, problems in verify.verify(root, deep=True):
        assert problems == [] or name.startswith("raw/"), name
    for path in root.glob("*/*/current"):
        assert artifact.is_whole(path), f"{path} leads to nothing whole"
    if digests:
        tokens = [path for path in artifact.generations(root) if path.parts[-3] == "tokens"]
        assert {artifact.read(path).digest for path in tokens} <= {*digests}
    assert [path for path in root.rglob("*.lock") if locks.is_locked(path)] == []


def assert_settled(root: Path, *digests: str) -> None:
    """What holds once a refresh has ended well: all of the above, every raw file is what its pin says, and nothing
    is left behind (I4)."""
    assert_survived(root, *digests)
    assert [problem for _, problems in verify.verify(root, deep=True) for problem in problems] == []
    assert leftovers(root) == [], leftovers(root)


def assert_no_secret(root: Path, *said: str) -> None:
    """The token is in no output, no log and no state (I7)."""
    for text in said:
        assert SECRET not in text
    for path in root.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".lock"):
            assert SECRET.encode() not in path.read_bytes(), path


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each file: what tells one from another that was written anew."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Disks


@dataclass(frozen=True)
class Mounted:
    """A file system of its own in an image file, mounted at `folder`."""

    folder: Path
    image: Path

    def as_after_a_power_cut(self, target: Path) -> Path:
        """A copy of what has reached the disk by now: what is only in memory is lost."""
        subprocess.run(["cp", "--sparse=always", str(self.image), str(target)], check=True)
        return target


@contextmanager
def mounted_ext4(folder: Path, name: str, *, megabytes: int = 16, image: Path | None = None) -> Iterator[Mounted]:
    """An ext4 that brings nothing to the disk by itself for as long as a test takes; empty, or of an `image`.

    Skips where that cannot be mounted.
    """
    where = folder / f"{name}.mount"
    where.mkdir()
    made = image or folder / f"{name}.image"
    if os.getuid() or not shutil.which("mkfs.ext4"):
        pytest.skip("power cuts were NOT tested: only root may mount an image, with mkfs.ext4")
    if not image:
        with open(made, "wb") as out:
            out.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(made)], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop,commit=300", str(made), str(where)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"power cuts were NOT tested: no image can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield Mounted(where, made)
    finally:
        subprocess.run(["umount", str(where)], check=True)


@contextmanager
def mounted_tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """`folder` as a small disk of its own, `options` as `size=2m`. Skips where that cannot be mounted."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"small disks were NOT tested: none can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
