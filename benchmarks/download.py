"""`bench download`: one file from a local server, by Inkstone and by `curl -s -o` followed by `sha256sum`.

Inkstone's file is verified, synced to disk and pinned by its hash; curl's file is only hashed. Each run is a process,
timed from its start. The file goes to memory (/dev/shm) and to the disk that holds temporary files.
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

from benchmarks.rows import Row, median_rates

_ROOT = Path(__file__).resolve().parent.parent
_MEMORY = Path("/dev/shm")
_NAME = "shard.txt"


def bench(rounds: int, *, size: int = 1024, report: Callable[[str], None] = lambda line: None) -> list[Row]:
    """Return a row for each target folder, in MB of the file per second. The file has `size` MiB."""
    if missing := [tool for tool in ("curl", "sha256sum") if not shutil.which(tool)]:
        report(f"download: skipped, not installed: {', '.join(missing)}")
        return []
    targets = {"memory": _MEMORY, "disk": Path(tempfile.gettempdir())}
    rows = []
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        shard = Path(folder) / _NAME
        with open(shard, "wb") as out:
            for _ in range(size):
                out.write(os.urandom(1 << 20))
        with _serving(shard) as url:
            for name, target in targets.items():
                if target.is_dir():
                    ours, peer = partial(_ours, target, url, size), partial(_peer, target, url, size)
                    rates = median_rates(ours, peer, rounds)
                    rows.append(Row(f"download {size} MiB, into {name}", *rates, "curl, then sha256sum", "MB/s"))
                    report(rows[-1].line())
    return rows


def _ours(target: Path, url: str, size: int) -> float:
    with tempfile.TemporaryDirectory(dir=target) as folder:
        command = [sys.executable, "-m", "benchmarks.download_once", folder, url]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=_ROOT, env={**os.environ, "NO_PROXY": "*"})
        return size * 1.048576 / (time.perf_counter() - start)


def _peer(target: Path, url: str, size: int) -> float:
    with tempfile.TemporaryDirectory(dir=target) as folder:
        path = Path(folder) / _NAME
        start = time.perf_counter()
        subprocess.run(["curl", "-s", "--noproxy", "*", "-o", path, url], check=True)
        subprocess.run(["sha256sum", path], check=True, stdout=subprocess.DEVNULL)
        return size * 1.048576 / (time.perf_counter() - start)


@contextmanager
def _serving(shard: Path) -> Iterator[str]:
    """Serve one file for every request, as fast as the system can, and yield the server's URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, shard), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/{_NAME}"


def _serve(listener: socket.socket, shard: Path) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the listener was closed: the benchmark is over
            return
        with connection, open(shard, "rb") as data:
            request = b""
            while b"\r\n\r\n" not in request and (received := connection.recv(4096)):
                request += received
            length = b"Content-Length: %d\r\n" % shard.stat().st_size
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + length + b'ETag: "1"\r\nConnection: close\r\n\r\n')
            if request.startswith(b"GET"):
                connection.sendfile(data)
