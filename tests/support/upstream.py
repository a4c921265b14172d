"""A local server of upstream files and a recipe that is refreshed from it: a small nightly refresh.

The hub serves the Pile's paths as the Hugging Face hub does. Headers describe each file, every state of the repository
has a commit, and a commit keeps serving its own files.
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
# One process and few imports, with units and chunks so small that a small file has several of them.
_DRIVER = """
import sys
from pipeline.tokens import chunks, stage
chunks.UNIT_BYTES, chunks.CHUNK_BYTES, stage._SMALL = {unit}, {chunk}, 0
import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@dataclass
class Hub:
    """The upstream files.

    linked    publish sha256 hashes, or else only strong ETags
    pace      seconds to wait before sending each 16 KiB
    requests  requests received: method, name, first byte
    """

    linked: bool = True
    pace: float = 0.0
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    url: str = ""
    _files: dict[str, bytes] = field(default_factory=dict)
    _commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def put(self, name: str, data: bytes | Iterable[str]) -> None:
        """Set the content of a file to these bytes or documents."""
        self._commit({**self._files, name: data if isinstance(data, bytes) else packed(data)})

    def remove(self, name: str) -> None:
        self._commit({other: data for other, data in self._files.items() if other != name})

    def _commit(self, tree: dict[str, bytes]) -> None:
        self._files = tree
        self._commits[self.commit] = tree

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name, data in sorted(self._files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return digest.hexdigest()

    def read(self, revision: str, name: str) -> bytes | None:
        return (self._files if revision == "main" else self._commits.get(revision, {})).get(name)

    @property
    def names(self) -> list[str]:
        return sorted(self._files)

    def size(self, name: str) -> int:
        return len(self._files[name])


def packed(texts: Iterable[str]) -> bytes:
    """Return documents as compressed JSON lines."""
    lines = b"".join(jsonl.encode_line(text, "", "", None) for text in texts)
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(lines)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        match = _PATH.fullmatch(self.path)
        data = self.hub.read(match[1], match[2]) if match else None
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        self.hub.requests.append((self.command, match[2] if match else self.path, start))
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
        for offset in range(start, len(data) if with_body else 0, 1 << 14):
            time.sleep(self.hub.pace)
            self.wfile.write(data[offset : offset + (1 << 14)])

    def log_message(self, *_: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore connections closed by killed clients."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` at its `url` while the block runs."""
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub})) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02))
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def letters(folder: Path, alphabet: Iterable[str] = tuple(map(chr, range(32, 127)))) -> Path:
    """Publish a tokenizer of single characters below `folder`, the fastest to build and load."""

    def write(draft: Path) -> artifact.StageOutput:
        Characters("".join(alphabet), "letters").save(draft)
        return artifact.StageOutput({})

    identity = Identity("tokenizers", "letters", {}, ())
    return artifact.build(folder, identity, write).artifact.path


def texts(name: str, count: int = 60, edition: int = 0) -> list[str]:
    """Return documents that are unique to the file `name` and the edition."""
    return [f"{name} edition {edition} document {index} " + "of some length " * (index % 7) for index in range(count)]


@dataclass(frozen=True)
class Nightly:
    """A recipe over a hub and the options of its refresh. `environment` is the complete one of its process."""

    recipe: Path
    environment: Mapping[str, str]
    through: str = "tokenize"
    unit: int = 1 << 12
    chunk: int = 1 << 11

    def command(self, root: Path, *arguments: object) -> list[str]:
        driver = _DRIVER.format(unit=self.unit, chunk=self.chunk)
        refresh = ("refresh", self.recipe, "--through", self.through, *arguments)
        return [sys.executable, "-c", driver, "--artifacts", str(root), *map(str, refresh)]

    def start(self, root: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Start a refresh in its own process group."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
        command = self.command(root, *arguments)
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, text=True, start_new_session=True, **streams)

    def run(self, root: Path, *arguments: object, code: int = 0, **options: Any) -> CommandResult:
        """Refresh with --json and assert the exit code."""
        with self.start(root, "--json", *arguments, **options) as process:
            stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == code, f"exit code {process.returncode}, expected {code}: {stderr}"
        return CommandResult(json.loads(stdout) if stdout else {}, stderr or "")


@dataclass(frozen=True)
class CommandResult:
    """Output of a command: its JSON object and its stderr."""

    outcome: dict[str, Any]
    stderr: str

    @property
    def results(self) -> dict[str, str]:
        return {stage["stage"]: stage["result"] for stage in self.outcome["stages"]}

    def assert_refused(self) -> None:
        """Assert that the command failed with a one-line error and a hint, without a traceback."""
        assert self.outcome["result"] == "failed"
        assert self.outcome["error"]
        assert self.outcome["hint"]
        last = self.stderr.rstrip().splitlines()[-1]
        assert last == f"error: {self.outcome['error']} — {self.outcome['hint']}"
        assert "Traceback" not in self.stderr


def environment(hub: Hub) -> dict[str, str]:
    """Return the minimal environment of a refresh from `hub`."""
    inherited = {
        name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH", "TIKTOKEN_CACHE_DIR") if name in os.environ
    }
    return {**inherited, "HF_ENDPOINT": hub.url, "HF_TOKEN": SECRET, "OMP_WAIT_POLICY": "PASSIVE"}


SECRET = "hf_neverToBeSeenAnywhere"


def nightly(folder: Path, hub: Hub, *, shards: str = "0-2,val", lines: Sequence[str] = (), **options: Any) -> Nightly:
    """Write a recipe of the Pile that tokenizes `shards` by characters. `lines` are added to its section [tokenize]."""
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
    """Publish training shards and a validation file."""
    for shard in range(shards):
        hub.put(f"train/{shard:02d}.jsonl.zst", texts(f"shard {shard}", count))
    hub.put("val.jsonl.zst", texts("held out", 8))


# Results of a refresh


def published(root: Path) -> dict[str, str]:
    """Return the sha256 of every file of every current generation by its path, manifests included.

    `run.json` is left out: it describes the run and differs every time.
    """
    sums = {}
    for link in sorted(root.glob("*/*/current")):
        folder = link.resolve()
        for path in sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "run.json"):
            sums[f"{folder.relative_to(root.resolve())}/{path.relative_to(folder)}"] = files.sha256_of(path)
    return sums


def generation(root: Path, kind: str = "tokens", name: str = "small") -> artifact.Artifact | None:
    """Return the current generation, None if there is none."""
    return artifact.current(root, kind, name)


def leftovers(root: Path) -> list[str]:
    """Return temporary files, none of which may exist after a successful refresh."""
    prefixes, suffixes = (files.TEMPORARY, files.TRASH, ".draft-", artifact.SCRATCH), (".part", ".part.json")
    paths = (path for path in root.rglob("*") if path.name.startswith(prefixes) or path.name.endswith(suffixes))
    return sorted(path.relative_to(root).as_posix() for path in paths)


def assert_survived(root: Path, *digests: str) -> None:
    """Assert that every published file is complete and no lock is held (I1, I6).

    If `digests` are given, every generation of tokens has one of them. A raw file may exist without its pin: no stage
    reads it before the next download pins it.
    """
    for name, problems in verify.verify(root, deep=True):
        assert problems == [] or name.startswith("raw/"), name
    for path in root.glob("*/*/current"):
        assert artifact.is_intact(path), f"{path} points to no valid artifact"
    if digests:
        tokens = [path for path in artifact.generations(root) if path.parts[-3] == "tokens"]
        assert {artifact.read(path).digest for path in tokens} <= {*digests}
    assert [path for path in root.rglob("*.lock") if locks.is_locked(path)] == []


def assert_settled(root: Path, *digests: str) -> None:
    """Assert the state after a successful refresh: as `assert_survived`, and all raw files match their pins and nothing
    is left behind (I4)."""
    assert_survived(root, *digests)
    assert [problem for _, problems in verify.verify(root, deep=True) for problem in problems] == []
    assert leftovers(root) == [], leftovers(root)


def assert_no_secret(root: Path, *outputs: str) -> None:
    """Assert that the token is in no output, log or state (I7)."""
    for text in outputs:
        assert SECRET not in text
    for path in root.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".lock"):
            assert SECRET.encode() not in path.read_bytes(), path


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of each file by path; they change if it is written again."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Disks


@dataclass(frozen=True)
class Mounted:
    """A file system in an image file, mounted at `folder`."""

    folder: Path
    image: Path

    def as_after_a_power_cut(self, target: Path) -> Path:
        """Copy the blocks that have reached the disk; data only in memory is lost."""
        subprocess.run(["cp", "--sparse=always", str(self.image), str(target)], check=True)
        return target


@contextmanager
def mounted_ext4(folder: Path, name: str, *, megabytes: int = 16, image: Path | None = None) -> Iterator[Mounted]:
    """Mount an ext4 that does not commit by itself during a test; empty, or from an `image`.

    Skips the test if it cannot be mounted.
    """
    mount_point = folder / f"{name}.mount"
    mount_point.mkdir()
    blocks = image or folder / f"{name}.image"
    if os.getuid() or not shutil.which("mkfs.ext4"):
        pytest.skip("power cuts were NOT tested: needs root and mkfs.ext4")
    if not image:
        with open(blocks, "wb") as out:
            out.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(blocks)], check=True, capture_output=True)
    command = ["mount", "-o", "loop,commit=300", str(blocks), str(mount_point)]
    process = subprocess.run(command, capture_output=True, check=False)
    if process.returncode:
        pytest.skip(f"power cuts were NOT tested: cannot mount an image: {process.stderr.decode().strip()}")
    try:
        yield Mounted(mount_point, blocks)
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


@contextmanager
def mounted_tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small tmpfs at `folder`, with `options` such as `size=2m`. Skips the test if it cannot be mounted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    process = subprocess.run(command, capture_output=True, check=False)
    if process.returncode:
        pytest.skip(f"small disks were NOT tested: cannot mount a tmpfs: {process.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
