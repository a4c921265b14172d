"""A part: what has come of a file that is being fetched, and what is known of it, so that a later process goes on.

    NAME.part        what came so far
    NAME.part.json   which file it is of, and how much of it is on the disk for certain

A part is continued only when it is of the very same content: by the sha256 that the hub publishes, or else by a
strong ETag; without either nothing is kept. What is on the disk is read and hashed again before that, so what is
published was hashed as it lies there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from pipeline.runtime.redaction import shown
from pipeline.sources.http import Facts
from pipeline.store import files


class _State(msgspec.Struct, frozen=True):
    """What `NAME.part` is a part of; `durable` bytes of it are on the disk for certain. `came` is the sha256 of all of
    it once it is whole, where the server publishes none: by that NAME itself is known while nobody has pinned it."""

    schema: int
    url: str
    sha256: str
    size: int | None
    etag: str
    durable: int
    came: str = ""


def path_of(target: Path) -> Path:
    """Where what came of `target` is kept."""
    name = target.name
    if len(name.encode()) > 200:  # with what is added, too long for a file system
        name = f"{name[:40]}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return target.with_name(f"{name}.part")


def state_path(target: Path) -> Path:
    """Where it is written down what the part is of."""
    part = path_of(target)
    return part.with_name(f"{part.name}.json")


def _state(target: Path, facts: Facts) -> _State | None:
    """What an earlier process left of this very file, if it did."""
    try:
        state = msgspec.json.decode(state_path(target).read_bytes(), type=_State)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    same = state.sha256 == facts.sha256 if facts.sha256 else bool(facts.strong_etag) and state.etag == facts.etag
    return state if same and state.schema == 1 and facts.size in (None, state.size) else None


def durable(target: Path, facts: Facts) -> int:
    """How many bytes of this file an earlier process left, so that they need not be fetched again."""
    state = _state(target, facts)
    kept = files.size_of(path_of(target)) or 0
    return max(0, min(state.durable, kept)) if state else 0


def arrived(target: Path, facts: Facts) -> str:
    """The sha256 of `target` if it is this very file, which an earlier process did not come to pin; otherwise ""."""
    state, size = _state(target, facts), files.size_of(target)
    wanted = facts.sha256 or (state.came if state else "")
    if not wanted or size is None or facts.size not in (None, size):
        return ""
    return wanted if files.sha256_of(target) == wanted else ""


def remember(target: Path, facts: Facts, durable: int, came: str = "") -> None:
    """Say that `durable` bytes of this file are on the disk; with its sha256 as `came`, that it is whole."""
    state = _State(1, shown(facts.url), facts.sha256, facts.size, facts.etag, durable, came)
    files.write_file(state_path(target), msgspec.json.encode(state))


def forget(target: Path) -> None:
    """Remove what is kept about the transfer of `target`: it is pinned now."""
    files.disk.unlink(state_path(target))


def is_remembered(target: Path) -> bool:
    """Whether the transfer of `target` ended, and only `forget` is still to be called."""
    return state_path(target).exists() and not path_of(target).exists()


def unsay(target: Path) -> None:
    """Take back what was said of the part, durably: not even after a power cut may there be more than it holds."""
    if (state := state_path(target)).exists():
        files.disk.unlink(state)
        files.sync_directory(state.parent)
