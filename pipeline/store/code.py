"""The source code of a stage as part of its keys: which files decide its bytes, and which of them were edited.

`released.json` holds the sha256 of each of these files as released; `make digests` writes it. A file on disk that is
equal to the released one adds nothing to a key; one that was edited, added or deleted adds its digest.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.errors import DISTRIBUTION

PACKAGES = Path(__file__).resolve().parents[2]  # the folder of `pipeline` and `model`
RELEASED = Path(__file__).with_name("released.json")
HARMLESS = {  # to every stage
    "pipeline/errors.py": "messages and exit codes",
    "pipeline/runtime/engines.py": "opens an engine by its name",
    "pipeline/runtime/progress.py": "reports to people",
    "pipeline/runtime/ray_engine.py": "runs tasks on other machines",
    "pipeline/runtime/redaction.py": "hides secrets in messages",
    "pipeline/runtime/regular_file.py": "refuses what is not a file",
    "pipeline/runtime/terminal.py": "prints lines",
    "pipeline/runtime/spread.py": "chooses where a task runs",
    "pipeline/runtime/signals.py": "stops a stage, which publishes nothing then",
    "pipeline/sources": "fetches and selects files, whose names and hashes are part of the key",
    "pipeline/store": "computes keys, and stores files without changing them",
}


class CodeState(msgspec.Struct, frozen=True):
    """The code that builds an artifact.

    version  of the program, "" if it is not installed
    digest   sha256 of the paths and digests of all source files of the stage
    edited   sha256 of each file that differs from the release, by its path; "" if it was deleted
    """

    version: str = ""
    digest: str = ""
    edited: dict[str, str] = {}


AS_RELEASED = CodeState()


class Golden(msgspec.Struct, frozen=True):
    """Result of a stage for a reference text: a digest of its files, and the versions of its libraries."""

    digest: str
    libraries: dict[str, str]


class Released(msgspec.Struct, frozen=True):
    """The content of released.json.

    schemas  SCHEMA of each stage
    golden   what the stage makes of reference texts, by stage and text
    files    sha256 of the source files that decide bytes, by path; "" for others in the same folders
    """

    schemas: dict[str, int]
    golden: dict[str, dict[str, Golden]]
    files: dict[str, str]


@dataclass(frozen=True, eq=False)
class Code:
    """The source files that decide the bytes of a stage.

    `paths` are files and folders relative to `PACKAGES`. `harmless` are those among them, and others that the stage
    imports, that do not decide bytes, each with the reason. The longest entry that matches a file counts.
    """

    paths: tuple[str, ...]
    harmless: Mapping[str, str]

    def decides(self, path: str) -> bool:
        """Return True if the file `path` decides the bytes of the stage."""
        return _match(path, self.paths) > _match(path, self.harmless)

    def files(self, released: Mapping[str, str]) -> list[str]:
        """Return the paths of all files that decide bytes, on disk or `released`, sorted.

        A file that is not released counts if it lies in the folder of one that does.
        """
        folders = {path.rpartition("/")[0] if path.endswith(".py") else path for path in self.paths}
        paths = {path for folder in folders for path in source_files(folder)} | released.keys()
        return sorted(
            path
            for path in paths
            if self.decides(path)
            or (path not in released and path.rpartition("/")[0] in folders and not _match(path, self.harmless))
        )


def _match(path: str, entries: Iterable[str]) -> int:
    """Return the length of the longest of the files and folders `entries` that is `path` or contains it; 0 if none."""
    return max((len(entry) for entry in entries if f"{path}/".startswith(f"{entry}/")), default=0)


def source_files(folder: str) -> Iterator[str]:
    """Yield the paths of the Python files below `folder` that can be imported."""
    for top, _, names in os.walk(PACKAGES / folder):
        for name in names:
            if name.endswith(".py") and name[:-3].isidentifier():
                yield Path(top, name).relative_to(PACKAGES).as_posix()


@functools.cache
def state_of(code: Code) -> CodeState:
    """Return the state of the code of a stage. The files are read once in a process."""
    released = read_released().files
    digests = {path: digest_of(path) for path in code.files(released)}
    edited = {path: digest for path, digest in digests.items() if digest != released.get(path)}
    lines = "".join(f"{path} {digest}\n" for path, digest in digests.items())
    return CodeState(_version(), hashlib.sha256(lines.encode()).hexdigest(), edited)


@functools.cache
def digest_of(path: str) -> str:
    """Return the sha256 of a source file; "" if there is no such file."""
    try:
        return hashlib.sha256((PACKAGES / path).read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


@functools.cache
def read_released() -> Released:
    return msgspec.json.decode(RELEASED.read_bytes(), type=Released)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return ""


def built_with(edited: Mapping[str, str]) -> str:
    """Return "built with your FILE, FILE" for edited files, "" if there are none."""
    return f"built with your {', '.join(sorted(edited))}" if edited else ""


def build_note(edited: Mapping[str, str], result: str, *, rebuilt: bool) -> str:
    """Return the edited files that an artifact was built with, and the outcome of a rebuild; "" if there is neither."""
    notes = [built_with(edited)]
    if rebuilt:
        notes.append(f"rebuilt with {'the same' if result == 'unchanged' else 'other'} bytes")
    return ", ".join(filter(None, notes))


def changed_files(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return the paths whose digests differ between two tables of edited files, sorted."""
    return sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))


def describe_changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Describe what happened to each file between two tables of edited files."""
    return [
        f"{path} {'is as released again' if path not in new else 'was edited' if new[path] else 'was deleted'}"
        for path in changed_files(old, new)
    ]
