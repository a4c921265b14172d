"""Object stores for tests: moto's S3 server in this process, and those of rclone and SeaweedFS if installed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECRET = "a-secret-key-of-24-chars"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIATESTKEYID0000001",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "us-east-1",
}


class MotoServer:
    """moto's S3 server. The next `busy` requests are answered with 503, as S3 asks clients to slow down."""

    def __init__(self) -> None:
        server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
        from werkzeug.serving import make_server

        self.busy = 0
        self._application = server.DomainDispatcherApplication(server.create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/bucket", method="PUT")).close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if self.busy:
            self.busy -= 1
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return self._application(environ, start_response)

    def close(self) -> None:
        self._server.shutdown()


def _free_port() -> int:
    """Return a free port below 55,536: SeaweedFS adds 10,000 for gRPC."""
    while True:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            if (port := int(listener.getsockname()[1])) < 55_536:
                return port


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def _running(command: list[str], folder: Path, url: str) -> Iterator[str]:
    """Run a server until the block ends; yield its URL when it answers."""
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _answers(url):
            is_alive = process.poll() is None and time.monotonic() < deadline
            assert is_alive, (folder / "log").read_text()[-2000:]
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """Run rclone's S3 server, which ignores conditions and Range."""
    address = f"127.0.0.1:{_free_port()}"
    (folder / "data" / "bucket").mkdir(parents=True)
    key = f"{ENVIRONMENT['AWS_ACCESS_KEY_ID']},{SECRET}"
    command = [_program("rclone"), "serve", "s3", "--auth-key", key, "--addr", address, "data"]
    with _running(command, folder, f"http://{address}") as url:
        yield url


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """Run SeaweedFS with a bucket called `bucket`."""
    ports = {name: _free_port() for name in ("s3.port", "master.port", "volume.port", "filer.port")}
    ports |= {"s3.port.iceberg": 0, "s3.port.lance": 0}
    identity = {
        "name": "test",
        "credentials": [{"accessKey": ENVIRONMENT["AWS_ACCESS_KEY_ID"], "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    options = [f"-{name}={port}" for name, port in ports.items()]
    command = [_program("weed"), "server", "-dir=data", "-s3", "-s3.config=s3.json", "-ip=127.0.0.1", *options]
    command.append("-master.volumeSizeLimitMB=64")
    with _running(command, folder, f"http://127.0.0.1:{ports['s3.port']}") as url:
        folder_url = f"http://127.0.0.1:{ports['filer.port']}/buckets/bucket/"
        urllib.request.urlopen(urllib.request.Request(folder_url, method="POST")).close()
        yield url
