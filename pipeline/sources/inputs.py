"""The raw cache, `artifacts/raw/<source>/`: downloaded files beside one `sources.lock.json` that pins their content.

And, from it, from corpora and from plain paths, the files that a stage reads.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.readers.readers import KINDS
from pipeline.sources.cache import RawFile, folder, is_whole, read_lock
from pipeline.sources.catalogue import CATALOGUE, data_files
from pipeline.store import artifact, files
from pipeline.store.manifest import Input, is_name


@dataclass(frozen=True)
class InputFile:
    """A file that a stage reads; `digest` decides the stage's key and `split` is "train", "val", "test" or ""."""

    path: Path
    name: str
    digest: str
    stamp: tuple[int, int] = field(compare=False)  # size and mtime_ns of the bytes that `digest` is of
    split: str = ""
    corpus: artifact.Artifact | None = field(default=None, compare=False)  # that it is of

    def as_input(self, role: str) -> Input:
        return Input(role, self.name, self.digest)


def stamp(path: Path) -> tuple[int, int]:
    """What changes with a file: its size and the nanosecond of its last change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def require_unchanged(entry: InputFile) -> None:
    """Raises BadData when a file is not as it was when it was hashed."""
    if stamp(entry.path) != entry.stamp:
        raise BadData(f"{entry.path}: it was changed while it was read", hint="run the same command when it is whole")


class _Hashed(msgspec.Struct, frozen=True):
    """The hash of a local file as it was when it had this size and this time."""

    size: int
    mtime_ns: int
    sha256: str


_HASHES = ".hashes.json"
_SETTLED = 2_000_000_000  # ns: a file that was written just now may change again within the grain of its time


def hashes(root: Path, paths: Sequence[Path], *, deep: bool = False) -> list[str]:
    """sha256 of local files. One that was hashed before is read again if its size or time changed, or if `deep`."""
    try:
        known = msgspec.json.decode((root / _HASHES).read_bytes(), type=dict[str, _Hashed])
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):  # a cache: what it lost is hashed again
        known = {}
    found = []
    learned: dict[str, _Hashed] = {}
    for path in paths:
        status, name = path.stat(), str(path.resolve()).encode(errors="backslashreplace").decode()
        entry = known.get(name)
        if deep or entry is None or (entry.size, entry.mtime_ns) != (status.st_size, status.st_mtime_ns):
            entry = _Hashed(status.st_size, status.st_mtime_ns, files.sha256_of(path))
            if time.time_ns() - entry.mtime_ns > _SETTLED:
                learned[name] = entry
        found.append(entry.sha256)
    if learned:
        kept = {name: entry for name, entry in (known | learned).items() if Path(name).exists()}
        root.mkdir(parents=True, exist_ok=True)
        (root / _HASHES).write_bytes(msgspec.json.encode(kept, order="deterministic"))
    return found


def inputs(root: Path, reference: str, *, corpora: bool, deep: bool = False) -> list[InputFile]:
    """The files that `reference` means, in a fixed order: a corpus (where a stage reads those), a raw source or a
    part of one (`pile/train`), a file, or a folder. With `deep` every byte is hashed, whatever is remembered.

    Raises InputMissing with what to run first when there is nothing, BadData when a cached file was damaged.
    """
    if corpora and (corpus := _corpus(root, reference)):
        return [corpus_file(corpus, deep=deep)]
    if not reference:
        raise BadConfig("an empty name is no input", hint="`status` lists what there is")
    source, _, part = reference.partition("/")
    if pins := read_lock(root, source) if is_name(source) else {}:
        return _part(root, source, part, pins, deep)
    path = Path(reference)
    if path.is_file():
        return _local(root, {path: path.name}, deep)
    if path.is_dir() and (found := data_files(path)):
        return _local(root, {each: each.relative_to(path).as_posix() for each in found}, deep)
    if path.is_dir():
        raise InputMissing(f"{reference}: no data files in this folder", hint=f"names end in {', '.join(KINDS)}")
    if source in CATALOGUE:
        command = "download pile --shards 0,val" if source == "pile" else f"download {source}"
        raise InputMissing(f"the source {source} is not downloaded yet", hint=f"run `{command}` first")
    kinds = "no corpus, no downloaded source and no path" if corpora else "no downloaded source and no path"
    raise InputMissing(f"{reference}: {kinds} of this name", hint="`status` lists what there is")


def _local(root: Path, names: dict[Path, str], deep: bool) -> list[InputFile]:
    for name in names.values():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise BadConfig(f"{name!r}: a file name that is not UTF-8", hint="give it another name") from None
    stamps = [stamp(path) for path in names]  # before the hashes: what changes meanwhile is noticed when it is read
    digests = hashes(root, list(names), deep=deep)
    return [InputFile(*each) for each in zip(names, names.values(), digests, stamps, strict=True)]


def corpus_file(corpus: artifact.Artifact, *, deep: bool = False) -> InputFile:
    """The documents of a corpus."""
    path = artifact.require_whole(corpus).file("documents.jsonl.zst")
    before = stamp(path)
    if deep and (found := artifact.problems(corpus, deep=True)):
        raise BadData(found[0], hint="`clean` it again")
    return InputFile(path, corpus.ref, corpus.digest, before, corpus=corpus)


def _corpus(root: Path, reference: str) -> artifact.Artifact | None:
    try:
        return artifact.find(root, "corpora", reference)
    except InputMissing:
        return None


def _part(root: Path, source: str, part: str, pins: dict[str, RawFile], deep: bool) -> list[InputFile]:
    chosen = {name for name in pins if not part or name == part or name.startswith(part.rstrip("/") + "/")}
    if not chosen:
        raise InputMissing(f"{source}: nothing named {part} was downloaded", hint=f"there: {', '.join(sorted(pins))}")
    return pinned(root, source, chosen, deep=deep)


def pinned(root: Path, source: str, names: Collection[str], *, deep: bool = False) -> list[InputFile]:
    """Files of a source that was downloaded, in the order of their names. Raises BadData for one that is not whole."""
    pins, found = read_lock(root, source), []
    for name in sorted({*names} & pins.keys()):
        path = folder(root, source) / name
        before = stamp(path) if path.is_file() else (0, 0)
        if not is_whole(path, pins[name]) or (deep and files.sha256_of(path) != pins[name].sha256):
            raise BadData(f"{path}: not the file that was downloaded", hint="run its download again")
        found.append(InputFile(path, f"{source}/{name}", pins[name].sha256, before, pins[name].split))
    return found
