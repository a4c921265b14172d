"""Identity and manifest of an artifact: its key, known before any work is done, and its description afterwards.

The key is a hash of everything that decides the bytes, and of nothing else: no time, host, path or number of workers.

A manifest may come from another machine. So `read_manifest` checks that it is the one of its folder, that its values
have the types and ranges that the program relies on, and that it names no file outside of its folder.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict, TypeVar

import msgspec

from pipeline.errors import BadConfig, BadData, InputMissing, missing_package
from pipeline.runtime.regular_file import read_regular
from pipeline.store.code import AS_RELEASED, CodeState

SCHEMA = 1
# errors for a path at which there is no file
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
MANIFEST = "manifest.json"
KINDS = ("corpora", "tokenizers", "tokens", "runs")
BUILD_COMMANDS = {"corpora": "clean", "tokenizers": "train-tokenizer", "tokens": "tokenize", "runs": "train"}
_NAME = re.compile(r"[^\W_][\w.+-]{0,79}")
_KEY = re.compile(r"[0-9a-f]{16}")
_MAX_BYTES = 1 << 28  # of a manifest: about the size of that of 100 TB of text
_MAX_DEPTH = 32  # of lists and objects in the options
_T = TypeVar("_T")
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_SUFFIXES = re.compile(  # of texts, archives and their compressions
    r"(\.(txt|text|md|markdown|rst|x?html?|srt|vtt|ass|ssa|epub|docx|jsonl?|ndjson|jl|[ct]sv|parquet|arrow"
    r"|zst|gz|bz2|xz|zip|tar|tgz))+$",
    re.IGNORECASE,
)


class FileRecord(msgspec.Struct, frozen=True):
    """One published file: its path inside the artifact, its size in bytes, and the hex sha256 of its bytes."""

    name: str
    size: Count
    sha256: Sha256


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

    def encode(self) -> bytes:
        """Return the manifest as JSON. Raises BadConfig for a number that JSON cannot hold."""
        require_json({"counts": self.counts, "ledger": self.ledger}, "manifest")
        return msgspec.json.format(msgspec.json.encode(self, order="deterministic"), indent=2)

    @property
    def ref(self) -> str:
        return f"{self.kind}/{self.name}/{self.key}"

    def option(self, name: str, option_type: type[_T]) -> _T:
        """Return an option as a value of that type. Raises BadData if it is missing or another value."""
        try:
            return msgspec.convert(self.options[name], option_type)
        except KeyError:
            reason = "missing"
        except msgspec.ValidationError as error:
            reason = str(error)
        except BadConfig as error:
            reason = error.message
        raise BadData(f"{self.ref}: option {name}: {reason}", hint=f"`{BUILD_COMMANDS[self.kind]}` it again")

    def require_counts(self, *names: str) -> dict[str, Any]:
        """Return the counts. Raises BadData if one of `names` is missing."""
        if missing := [name for name in names if name not in self.counts]:
            raise BadData(
                f"{self.ref}: its manifest has no count {missing[0]}", hint=f"`{BUILD_COMMANDS[self.kind]}` it again"
            )
        return self.counts


def build_hint(kind: str) -> str:
    """Return the hint for a missing artifact. For a run, it also names `start`, which needs no other artifact."""
    return f"`{BUILD_COMMANDS[kind]}` creates one" + (", `start FILE` from any text" if kind == "runs" else "")


class _Schema(msgspec.Struct):
    """The only field that manifests of every version have."""

    schema: Annotated[int, msgspec.Meta(ge=1)]


class _Counts(TypedDict, total=False):
    """The counts that are read back, of all kinds; a manifest may have others."""

    documents: Count
    characters: Count
    sentences: Count
    headings: Count
    input_bytes: Count
    tokens: Count
    train_tokens: Count
    val_tokens: Count
    train_documents: Count
    val_documents: Count
    train_characters: Count
    val_characters: Count
    train_stretches: Count
    val_stretches: Count
    overlap_documents: Count
    longest_document: Count
    units: Count
    compared: Count
    vocab_size: Count
    end_of_text: Count
    sets: dict[str, Count]
    dtype: Literal["<u2", "<u4"]
    tokenizer: str
    encoder: str
    steps: Count
    parameters: Count


_Tally = TypedDict(
    "_Tally",
    {"in": Count, "out": Count, "dropped": Required[dict[str, Count]], "added": dict[str, Count]},
    total=False,
)


class _Options(TypedDict, total=False):
    """The options that are read back before the stage of their artifact is known."""

    files: list[str]
    text_fields: list[str]
    model: dict[str, Any]
    train: dict[str, Any]


class _Values(msgspec.Struct):
    """The types of values in a manifest."""

    options: _Options
    counts: _Counts
    ledger: dict[str, _Tally]


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
        """Return the versions of `libraries`. Raises BadConfig if one is not installed."""
        from importlib.metadata import PackageNotFoundError, version  # as slow to import as the rest of this package

        try:
            return {name: version(name) for name in self.libraries}
        except PackageNotFoundError as error:
            raise missing_package(str(error.name)) from None

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
        require_json(content["options"], "options")
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:16]


def require_json(value: object, name: str) -> None:
    """Raise BadConfig for a number that JSON cannot hold: it would be written as null, or not at all."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadConfig(f"{name} is {value}, which JSON cannot hold", hint="use a finite number")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise BadConfig(f"{name} is a number of {value.bit_length()} bits", hint="use a smaller one")
    entries = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for key, entry in entries:
        require_json(entry, f"{name}.{key}")


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """Return the manifest in `folder` and the hex sha256 of its bytes.

    Raises InputMissing if there is none, BadConfig for a newer schema, BadData if it is torn, if it is not of an
    artifact in this folder, or if a value is not what a stage of this program writes.
    """
    path = folder / MANIFEST
    try:
        data = _read_bytes(folder)
        if (schema := msgspec.json.decode(data, type=_Schema).schema) > SCHEMA:
            raise BadConfig(f"{folder}: written by a newer version (schema {schema})", hint="upgrade this program")
        manifest = msgspec.json.decode(data, type=Manifest)
        values = {"options": manifest.options, "counts": manifest.counts, "ledger": manifest.ledger}
        msgspec.convert(values, _Values)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{path}: not a manifest: {error}", hint="run the stage again") from None
    for problem in _problems(manifest, folder):
        raise BadData(f"{path}: not a manifest of this folder: {problem}", hint="run the stage again")
    return manifest, hashlib.sha256(data).hexdigest()


class _Inputs(msgspec.Struct):
    """The inputs in a manifest, which `prune` must keep. Other fields are not checked."""

    inputs: tuple[Input, ...]


def read_inputs(folder: Path) -> tuple[Input, ...]:
    """Return the inputs in a manifest, even if its other values are invalid.

    Raises InputMissing if there is none, BadData if they cannot be read.
    """
    try:
        return msgspec.json.decode(_read_bytes(folder), type=_Inputs).inputs
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"{folder / MANIFEST}: not a manifest: {error}", hint="run the stage again") from None


def _read_bytes(folder: Path) -> bytes:
    """Return the bytes of the manifest in `folder`. Raises InputMissing if there is none."""
    try:
        return read_regular(folder / MANIFEST, at_most=_MAX_BYTES)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise InputMissing(f"{folder}: no artifact here", hint="`status` lists all artifacts") from None


def _problems(manifest: Manifest, folder: Path) -> Iterator[str]:
    """Yield what is wrong with the values of a manifest, and with the names in it."""
    if manifest.kind not in KINDS:
        yield f"unknown kind {manifest.kind[:80]!r}"
    if not is_valid_name(manifest.name):
        yield f"invalid name {manifest.name[:100]!r}"
    if not is_key(manifest.key):
        yield f"invalid key {manifest.key[:100]!r}"
    expected = _expected_ref(folder)
    if expected and not _equal_ends(manifest.ref, expected):
        yield f"it is that of {manifest.ref}, expected {expected}"
    names = [record.name for record in manifest.files]
    if (outside := next((name for name in names if not is_inside(name)), None)) is not None:
        yield f"{outside[:200]!r} is not a path inside the artifact"
    if len({*names}) < len(names):
        yield f"{next(name for name in names if names.count(name) > 1)!r} is listed twice"
    if _depth_exceeds(manifest.options, _MAX_DEPTH):
        yield f"options nested more than {_MAX_DEPTH} levels deep"


def _expected_ref(folder: Path) -> str:
    """Return the end of kind/name/key that the path of an artifact implies; "" if its last part is not a key."""
    path = Path(os.path.abspath(folder))
    if path.name == "current" and path.is_symlink():
        path = path.with_name(Path(os.readlink(path)).name)
    key = path.name.removeprefix(".draft-").removeprefix(".replaced-")
    if not is_key(key):
        return ""
    shelf = path.parent
    return f"{shelf.parent.name}/{shelf.name}/{key}" if shelf.parent.name in KINDS else key


def _equal_ends(ref: str, end: str) -> bool:
    """Return True if a reference ends with `end`; some file systems decompose accents in the names of folders."""
    return f"/{unicodedata.normalize('NFC', ref)}".endswith(f"/{unicodedata.normalize('NFC', end)}")


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Return True if lists and dicts are nested deeper than `limit`."""
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(outer, dict | list) for outer in level)


def is_key(text: str) -> bool:
    """Return True if `text` has the form of a key."""
    return _KEY.fullmatch(text) is not None


def is_inside(name: str) -> bool:
    """Return True if `name` is the relative path of a file below a folder, without `.`, `..` or control characters."""
    has_controls = any(unicodedata.category(char) in ("Cc", "Cs") for char in name)
    return not has_controls and all(part not in ("", ".", "..") for part in name.split("/"))


def path_of_ref(root: Path, ref: str) -> Path:
    """Return the folder of `kind/name/key`. Raises BadData for anything else, such as a path out of `root`."""
    kind, _, rest = ref.partition("/")
    name, _, key = rest.partition("/")
    if kind not in KINDS or not is_valid_name(name) or not is_key(key):
        raise BadData(
            f"{ref[:200]!r} is not the kind/name/key of an artifact", hint="run the stage that names it again"
        )
    return root / kind / name / key


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
    if "://" in path_or_name and re.search(r"[*?\[]", last):  # a pattern in a bucket: its folder names it
        last = path_or_name.rstrip("/").rsplit("/", 2)[-2]
    if last in (".", ".."):
        last = os.path.basename(os.path.realpath(path_or_name))
    stem = _SUFFIXES.sub("", unicodedata.normalize("NFC", last))
    name = re.sub(r"[^\w.+-]+", "-", stem).lstrip("._+-")[:80].rstrip("-")
    return check_name(name or "unnamed")
