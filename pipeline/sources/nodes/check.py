"""Checks on a node: the same versions, the same input files, and a draft that all nodes see."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from pipeline.errors import DISTRIBUTION, BadConfig, BadData, InputMissing
from pipeline.sources.hashes import file_stamp
from pipeline.sources.inputs import InputFile
from pipeline.store import artifact, files
from pipeline.store.code import Code, state_of

SHARED = "put it in a folder that all nodes share, under the same path"
_CODE = "source code"
PATIENCE = 30.0  # seconds until a network file system shows a new file


def versions_of(code: Code, libraries: Iterable[str]) -> dict[str, str]:
    """Return the versions on this machine of everything that decides bytes: Inkstone, its code, and libraries."""
    state = state_of(code)
    names = sorted({*libraries, "zstandard"})
    return {DISTRIBUTION: state.version, _CODE: state.digest[:16]} | {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def require_versions(expected: Mapping[str, str], code: Code, settings: Mapping[str, str] | None = None) -> None:
    """Raise BadConfig if this node would make other bytes. `settings` are the digests of settings on this node."""
    settings = dict(settings or {})
    own = versions_of(code, expected.keys() - {DISTRIBUTION, _CODE, *settings}) | settings
    for name, version in expected.items():
        if own[name] != version:
            raise BadConfig(
                f"{platform.node()} has {name} {own[name]}, this command {version}",
                hint="install the same versions on every node",
            )


def require_draft(draft: Path) -> None:
    """Raise BadConfig unless the scratch folder of `draft` exists on this node."""
    if not (draft / artifact.SCRATCH).is_dir():
        raise BadConfig(f"{platform.node()}: {draft}: no such folder", hint=f"the artifacts folder: {SHARED}")


def local_file(entry: InputFile) -> InputFile:
    """Return an input file with its stamp on this node. The digest of `entry` must be the sha256 of its bytes.

    A file with another time or inode is hashed: it may be a copy. Raises InputMissing, or BadData for other bytes.
    """
    try:
        stamp = file_stamp(entry.path)
    except FileNotFoundError:
        raise InputMissing(f"{platform.node()}: {entry.path}: no such file", hint=SHARED) from None
    is_same = stamp == entry.stamp or (stamp.size == entry.stamp.size and files.sha256_of(entry.path) == entry.digest)
    if not is_same:
        raise BadData(
            f"{platform.node()}: {entry.path}: not the file that the command was started with", hint="copy it again"
        )
    return dataclasses.replace(entry, stamp=stamp)


def wait_for_files(sizes: Iterable[tuple[Path, int]], patience: float = PATIENCE) -> None:
    """Wait until files that a node wrote have their sizes on this machine. Raises BadConfig for a missing file.

    The bytes are not read: the node hashed them while it wrote them.
    """
    until = time.monotonic() + patience
    for path, size in sizes:
        while files.file_size(path) != size:
            if time.monotonic() >= until:
                raise BadConfig(f"{path}: written by a node, not on this machine", hint=f"artifacts folder: {SHARED}")
            time.sleep(min(0.2, patience))
