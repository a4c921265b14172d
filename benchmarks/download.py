"""`bench download`: a file from a server on this machine, ours against `curl -s -o` and then `sha256sum`, in turn.

Ours is verified, synced and pinned when it ends; what curl wrote is only hashed. Both are measured as processes, from
their start, into memory (/dev/shm) and onto the disk of temporary files.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.rows import Row, in_turn

_MEMORY = Path("/dev/shm")
_NAME = "shard.txt"

_OURS = """
import sys
from pathlib import Path
from pipeline.sources import catalogue as sources
from pipeline.sources import download
from pipeline.runtime.progress import Silent
download.download(Path(sys.argv[1]), sources.resolve(sys.argv[2], environment={}), Silent())
"""


def bench(rounds: int, *, size: int = 1024, report: Callable[[str], None] = lambda line: None) -> list[Row]:
    """A row for each place, in MB of the file a second; `size` is in MiB."""
    if missing := [tool for tool in ("curl", "sha256sum") if not shutil.which(tool)]:
        report(f"download: left out, {' and '.join(missing)} is not installed")
        return []
    places = {"memory": _MEMORY, "disk": Path(tempfile.gettempdir())}
    rows = []
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        shard = Path(folder) / _NAME
        with open(shard, "wb") as out:
            for _ in range(size):
                out.write(os.urandom(1 << 20))
        with _serving(shard) as url:
            for where, place in places.items():
                if place.is_dir():
                    ours, peer = in_turn(partial(_ours, place, url, size), partial(_peer, place, url, size), rounds)
                    rows.append(Row(f"download {size} MiB, into {where}", ours, peer, "curl, then sha256sum", "MB/s"))
                    report(rows[-1].line())
    return rows


def _ours(place: Path, url: str, size: int) -> float:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", _OURS, folder, url], check=True, env={**os.environ, "NO_PROXY": "*"})
        return size * 1.048576 / (time.perf_counter() - start)


def _peer(place: Path, url: str, size: int) -> float:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        target = Path(folder) / _NAME
        start = time.perf_counter()
        subprocess.run(["curl", "-s", "--noproxy", "*", "-o", target, url], check=True)
        subprocess.run(["sha256sum", target], check=True, stdout=subprocess.DEVNULL)
        return size * 1.048576 / (time.perf_counter() - start)


@contextmanager
def _serving(shard: Path) -> Iterator[str]:
    """The URL of a server that sends one file, as fast as the system can, whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_serve, args=(listening, shard), daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/{_NAME}"


def _serve(listening: socket.socket, shard: Path) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:  # the end of the benchmark
            return
        with connection, open(shard, "rb") as data:
            asked = b""
            while b"\r\n\r\n" not in asked and (more := connection.recv(4096)):
                asked += more
            length = b"Content-Length: %d\r\n" % shard.stat().st_size
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + length + b'ETag: "1"\r\nConnection: close\r\n\r\n')
            if asked.startswith(b"GET"):
                connection.sendfile(data)
