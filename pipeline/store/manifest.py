"""Identity and manifest of an artifact: its key, known before any work is done, and its description afterwards.

The key is a hash of everything that decides the bytes, and of nothing else: no time, host, path or number of workers.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.errors import BadConfig
from pipeline.store.code import AS_RELEASED, CodeState

SCHEMA = 1
KINDS = ("corpora", "tokenizers", "tokens", "runs")
BUILD_COMMANDS = {"corpora": "clean", "tokenizers": "train-tokenizer", "tokens": "tokenize", "runs": "train"}
_NAME = re.compile(r"[^\W_][\w.+-]{0,79}")
_SUFFIXES = re.compile(  # of texts, archives and their compressions
    r"(\.(txt|text|md|markdown|rst|x?html?|epub|jsonl?|ndjson|jl|[ct]sv|parquet|arrow|zst|gz|bz2|xz|zip|tar|tgz))+$",
    re.IGNORECASE,
)


class FileRecord(msgspec.Struct, frozen=True):
    """One published file: its path inside the artifact, its size in bytes, and the hex sha256 of its bytes."""

    name: str
    size: int
    sha256: str


class Input(msgspec.Struct, frozen=True):
    """One input of an artifact: its role, a display name, and the digest of its content."""

    role: str
    name: str
    digest: str


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Description of an artifact. Equal inputs give equal manifests: no time, host, path or worker count in it.

    `code` has the digests of the edited source files that it was built with (`code.CodeState.edited`).
    """

    schema: int
    kind: str
    name: str
    key: str
    options: dict[str, Any]
    inputs: tuple[Input, ...]
    tokenizer: str
    libraries: dict[str, str]
    files: tuple[FileRecord, ...]
    counts: dict[str, Any]
    ledger: dict[str, Any]
    code: dict[str, str] = {}


@dataclass(frozen=True)
class Identity:
    """Everything that decides the bytes of an artifact, known before any work is done.

    `tokenizer` is the fingerprint of the tokenizer involved, "" if none; `libraries` names the packages whose version
    changes the bytes. `code` is the state of the source code of the stage; of it, only edited files are in the key.
    """

    kind: str
    name: str
    options: Mapping[str, Any]
    inputs: tuple[Input, ...]
    tokenizer: str = ""
    libraries: tuple[str, ...] = ()
    code: CodeState = AS_RELEASED

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version  # as slow to import as the rest of this package

        return {name: version(name) for name in self.libraries}

    @property
    def key(self) -> str:
        """The first 16 hex digits of the sha256 of this identity in canonical JSON."""
        content = {
            "schema": SCHEMA,
            "kind": self.kind,
            "options": dict(self.options),
            "inputs": [[entry.role, entry.digest] for entry in self.inputs],
            "tokenizer": self.tokenizer,
            "libraries": self.versions(),
        }
        if self.code.edited:
            content["code"] = self.code.edited
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:16]


def is_valid_name(name: str) -> bool:
    """Return True if `name` is valid for an artifact, and therefore for a folder."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return `name` if it is valid for an artifact. Raises BadConfig otherwise."""
    if not is_valid_name(name):
        raise BadConfig(
            f"{name!r} is not a valid artifact name",
            hint="use at most 80 letters, digits, '.', '-', '_' and '+', starting with a letter or digit",
        )
    return name


def name_from_path(path_or_name: str) -> str:
    """Derive an artifact name from a path, a URL or a name: `../data/a b.jsonl.zst` → `a-b`, `.` → the folder's."""
    last = path_or_name.rstrip("/").rsplit("/", 1)[-1]
    if last in (".", ".."):
        last = os.path.basename(os.path.realpath(path_or_name))
    stem = _SUFFIXES.sub("", unicodedata.normalize("NFC", last))
    name = re.sub(r"[^\w.+-]+", "-", stem).lstrip("._+-")[:80].rstrip("-")
    return check_name(name or "unnamed")
