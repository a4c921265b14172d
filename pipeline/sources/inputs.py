"""Resolve what a user names as input to the files that a stage reads, with their hashes.

A name is a corpus, a raw source or a part of one, a file, or a folder. Hashes of corpora and raw files are recorded
when they are written; those of other local files are cached in `artifacts/.hashes.json`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.readers.readers import PLAIN_SUFFIXES
from pipeline.sources.cache import RawFile, is_intact, read_lock_file, source_folder
from pipeline.sources.catalogue import CATALOGUE, data_files
from pipeline.store import artifact, files
from pipeline.store.manifest import Input, is_valid_name

_HASHES = ".hashes.json"
_SETTLED = 2_000_000_000  # ns; a younger file may change again without a new time, within the clock's resolution


@dataclass(frozen=True)
class InputFile:
    """A file that a stage reads. `digest` is part of the stage's key; `split` is "train", "val", "test" or ""."""

    path: Path
    name: str
    digest: str
    stamp: tuple[int, int] = field(compare=False)  # size and mtime_ns of the file when `digest` was computed
    split: str = ""
    corpus: artifact.Artifact | None = field(default=None, compare=False)  # the corpus that it belongs to

    def as_input(self, role: str) -> Input:
        return Input(role, self.name, self.digest)


class _Hashed(msgspec.Struct, frozen=True):
    """Cached hash of a local file, valid for this size and time."""

    size: int
    mtime_ns: int
    sha256: str


def resolve_inputs(root: Path, reference: str, *, corpora: bool, deep: bool = False) -> list[InputFile]:
    """Return the files that `reference` names, in a fixed order.

    It is a corpus (if `corpora`), a raw source or a part of one (`pile/train`), a file, or a folder. With `deep` every
    byte is hashed again. Raises InputMissing with the command to run first if there is none, BadData if a cached file
    is damaged.
    """
    if corpora and (corpus := _find_corpus(root, reference)):
        return [corpus_input(corpus, deep=deep)]
    if not reference:
        raise BadConfig("an input name is empty", hint="run `status` to list artifacts and sources")
    source, _, part = reference.partition("/")
    if pins := read_lock_file(root, source) if is_valid_name(source) else {}:
        return _source_part(root, source, part, pins, deep)
    path = Path(reference)
    if path.is_file():
        return _local_files(root, {path: path.name}, deep)
    if path.is_dir() and (paths := data_files(path)):
        return _local_files(root, {file: file.relative_to(path).as_posix() for file in paths}, deep)
    if path.is_dir():
        raise InputMissing(
            f"{reference}: no data files in this folder", hint=f"file names end in {', '.join(PLAIN_SUFFIXES)}"
        )
    if source in CATALOGUE:
        command = "download pile --shards 0,val" if source == "pile" else f"download {source}"
        raise InputMissing(f"the source {source} is not downloaded yet", hint=f"run `{command}` first")
    kinds = "no corpus, no downloaded source and no path" if corpora else "no downloaded source and no path"
    raise InputMissing(
        f"{reference}: {kinds} has this name", hint="check the name, or run `status` to list artifacts and sources"
    )


def corpus_input(corpus: artifact.Artifact, *, deep: bool = False) -> InputFile:
    """Return the documents of a corpus. Raises BadData if they are damaged."""
    path = artifact.require_intact(corpus).file("documents.jsonl.zst")
    stamp_before = file_stamp(path)
    if deep and (problems := artifact.find_problems(corpus, deep=True)):
        raise BadData(problems[0], hint="run `clean` again")
    return InputFile(path, corpus.ref, corpus.digest, stamp_before, corpus=corpus)


def pinned_files(root: Path, source: str, names: Collection[str], *, deep: bool = False) -> list[InputFile]:
    """Return files of a downloaded source, sorted by name. Raises BadData if one is damaged."""
    pins, input_files = read_lock_file(root, source), []
    for name in sorted({*names} & pins.keys()):
        path = source_folder(root, source) / name
        stamp_before = file_stamp(path) if path.is_file() else (0, 0)
        if not is_intact(path, pins[name]) or (deep and files.sha256_of(path) != pins[name].sha256):
            raise BadData(f"{path}: not the file that was downloaded", hint="download it again")
        digest, split = pins[name].sha256, pins[name].split
        input_files.append(InputFile(path, f"{source}/{name}", digest, stamp_before, split))
    return input_files


def local_hashes(root: Path, paths: Sequence[Path], *, deep: bool = False) -> list[str]:
    """Return the sha256 of local files. Cached ones are hashed again if size or time changed, or if `deep`."""
    try:
        cached = msgspec.json.decode((root / _HASHES).read_bytes(), type=dict[str, _Hashed])
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):  # only a cache: hash again
        cached = {}
    digests = []
    updates: dict[str, _Hashed] = {}
    for path in paths:
        status, name = path.stat(), str(path.resolve()).encode(errors="backslashreplace").decode()
        entry = cached.get(name)
        if deep or entry is None or (entry.size, entry.mtime_ns) != (status.st_size, status.st_mtime_ns):
            entry = _Hashed(status.st_size, status.st_mtime_ns, files.sha256_of(path))
            if time.time_ns() - entry.mtime_ns > _SETTLED:
                updates[name] = entry
        digests.append(entry.sha256)
    if updates:
        existing = {name: entry for name, entry in (cached | updates).items() if Path(name).exists()}
        root.mkdir(parents=True, exist_ok=True)
        (root / _HASHES).write_bytes(msgspec.json.encode(existing, order="deterministic"))
    return digests


def file_stamp(path: Path) -> tuple[int, int]:
    """Return the size of a file and its time of modification in ns, by which a change is detected."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def require_unchanged(entry: InputFile) -> None:
    """Raise BadData if a file changed after it was hashed."""
    if file_stamp(entry.path) != entry.stamp:
        raise BadData(
            f"{entry.path}: the file changed while it was read",
            hint="run the same command again when the file is complete",
        )


def _find_corpus(root: Path, reference: str) -> artifact.Artifact | None:
    try:
        return artifact.find(root, "corpora", reference)
    except InputMissing:
        return None


def _source_part(root: Path, source: str, part: str, pins: dict[str, RawFile], deep: bool) -> list[InputFile]:
    names = {name for name in pins if not part or name == part or name.startswith(part.rstrip("/") + "/")}
    if not names:
        raise InputMissing(
            f"{source}/{part}: no such file was downloaded", hint=f"downloaded: {', '.join(sorted(pins))}"
        )
    return pinned_files(root, source, names, deep=deep)


def _local_files(root: Path, names: dict[Path, str], deep: bool) -> list[InputFile]:
    for name in names.values():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise BadConfig(f"{name!r}: the file name is not valid UTF-8", hint="rename the file") from None
    stamps = [file_stamp(path) for path in names]  # before hashing, so that a change in between is noticed on reading
    digests = local_hashes(root, list(names), deep=deep)
    return [InputFile(*fields) for fields in zip(names, names.values(), digests, stamps, strict=True)]
