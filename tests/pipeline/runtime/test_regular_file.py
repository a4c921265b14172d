"""Pipes, sockets and devices are refused where a file is expected, before anything waits for them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pipeline.errors import InputMissing
from pipeline.runtime.regular_file import regular_file


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_pipe_and_a_link_to_it_are_refused(pipe: Path) -> None:
    link = pipe.with_name("link.txt")
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(InputMissing, match=f"{path.name}: a FIFO, not a file") as caught:
            regular_file(path)
        assert (caught.value.exit_code, caught.value.hint) == (66, "save its content in a file, and name that")


def test_socket_and_device_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(InputMissing, match="socket: a socket"):
            regular_file(Path("socket"))
    with pytest.raises(InputMissing, match="/dev/zero: a device"):
        regular_file(Path("/dev/zero"))


def test_files_folders_and_missing_paths_are_left_to_their_reader(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for path in (tmp_path / "a.txt", tmp_path, tmp_path / "missing", tmp_path / ("x" * 300), Path("a\0b")):
        assert regular_file(path) == path
