"""Resolve what a user names as input to the files that a stage reads, with their hashes.

A name is a corpus, a raw source or a part of one, a file, or a folder. Hashes of corpora and raw files are recorded
when they are written; those of other local files are cached (hashes.py).
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.readers import corpora as corpus_files
from pipeline.runtime.progress import Progress
from pipeline.runtime.regular_file import regular_file, require_utf8
from pipeline.sources.cache import RawFile, is_intact, read_lock_file, source_folder
from pipeline.sources.catalogue import CATALOGUE, is_like_path, resolve_source, similar_path
from pipeline.sources.dataset import PREFIX
from pipeline.sources.hashes import Stamp, file_stamp, local_hashes
from pipeline.sources.objects.fetch import fetch_objects
from pipeline.sources.order import natural_key
from pipeline.sources.origin import with_folder
from pipeline.sources.walk import LeftOut, NotText, matches, note_left_out, require_text, walk
from pipeline.store import artifact, files
from pipeline.store.bucket import is_url
from pipeline.store.manifest import Input, is_valid_name

_MAX_NAMED = 8  # files in an error
_CHECK_NAMES = "check the names, or run `status` to list artifacts and sources"


class NoSuchInput(InputMissing):
    """A name that is neither a path nor anything in the artifacts folder."""


@dataclass(frozen=True)
class InputFile:
    """A file that a stage reads. `digest` is part of the stage's key; `split` is "train", "val", "test" or "".

    `members` is the pattern of the files to read of an archive, "" for all.
    """

    path: Path
    name: str
    digest: str
    stamp: Stamp = field(compare=False)  # of the file when `digest` was computed
    split: str = ""
    corpus: artifact.Artifact | None = field(default=None, compare=False)  # the corpus that it belongs to
    members: str = ""

    def as_input(self, role: str) -> Input:
        return Input(role, self.name, self.digest)


@dataclass(frozen=True)
class Inputs:
    """The files that several references name, each text once, and the entries that are left out."""

    files: list[InputFile]
    left_out: list[LeftOut]


def gather_inputs(
    root: Path,
    references: Sequence[str],
    progress: Progress,
    *,
    corpora: bool,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    text_fields: Sequence[str] = (),
    deep: bool = False,
) -> Inputs:
    """Return the files that `references` name, in order. Files that are left out are reported in one line.

    Of files with the same text, the first is kept. Raises the errors of `resolve_inputs`: one InputMissing for all
    names that do not exist, and one NotText for all named files that are not text.
    """
    named: list[InputFile] = []
    left_out: list[LeftOut] = []
    unreadable: list[NotText] = []
    missing: dict[str, NoSuchInput] = {}
    for reference in references:
        try:
            with progress.wait(f"hashing the files of {reference}"):
                named += resolve_inputs(
                    root,
                    reference,
                    corpora=corpora,
                    include=include,
                    exclude=exclude,
                    text_fields=text_fields,
                    deep=deep,
                    left_out=left_out,
                    progress=progress,
                )
        except NoSuchInput as error:
            missing[reference] = error
        except NotText as error:
            unreadable.append(error)
    if missing:
        raise _missing(missing)
    if unreadable:
        raise _not_text(unreadable)
    unique: dict[tuple[str, str], InputFile] = {}
    firsts = [(unique.setdefault((file.digest, file.split), file), file) for file in named]
    left_out += [LeftOut(file.name, f"same as {first.name}") for first, file in firsts if first is not file]
    note_left_out(progress, left_out, len(unique), listed_by="--json")
    return Inputs(list(unique.values()), left_out)


def _missing(errors: Mapping[str, NoSuchInput]) -> InputMissing:
    if len(errors) == 1:
        return next(iter(errors.values()))
    similar = {name: similar_path(name).rstrip() for name in list(errors)[:_MAX_NAMED]}
    names = ", ".join(f"{name} ({text})" if text else name for name, text in similar.items())
    more = f" and {len(errors) - _MAX_NAMED} more" if len(errors) > _MAX_NAMED else ""
    return InputMissing(f"{len(errors)} inputs do not exist: {names}{more}", hint=_CHECK_NAMES)


def _not_text(errors: Sequence[NotText]) -> NotText:
    if len(errors) == 1:
        return errors[0]
    names = ", ".join(f"{error.path} ({error.reason})" for error in errors[:_MAX_NAMED])
    more = f" and {len(errors) - _MAX_NAMED} more" if len(errors) > _MAX_NAMED else ""
    return NotText(
        f"{len(errors)} inputs are not text: {names}{more}",
        hint="leave them out, or name their folder: files that are not text are then skipped",
    )


def resolve_inputs(
    root: Path,
    reference: str,
    *,
    corpora: bool,
    deep: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    text_fields: Sequence[str] = (),
    left_out: list[LeftOut] | None = None,
    progress: Progress | None = None,
) -> list[InputFile]:
    """Return the files that `reference` names, in a fixed order.

    It is a corpus (if `corpora`), a raw source or a part of one (`pile/train`), a dataset that was downloaded
    (`hf:OWNER/NAME`), objects in a bucket (`s3://bucket/pile/*.jsonl.zst`), a file, or a folder. An existing path is
    preferred to a raw source, and to a corpus if it is written as a path, with "/" or a suffix. If a bare name could be
    both, `progress` reports which one is read. `include`, `exclude` and `text_fields` choose files of a folder or
    source (see `walk`); the entries of a folder that are not read are added to `left_out`. With `deep` every byte is
    hashed again.

    Raises InputMissing with the command to run first if there is none, NotText if a named file cannot be read as text,
    BadData if a cached file is damaged.
    """
    if not reference:
        raise BadConfig("an input name is empty", hint="run `status` to list artifacts and sources")
    if reference.startswith(PREFIX):
        return _dataset_files(root, reference, deep)
    if is_url(reference):
        fetched = fetch_objects(root, reference, include=include, exclude=exclude, left_out=left_out, progress=progress)
        return _local_files(root, fetched, deep)
    path = Path(reference)
    is_path = path.exists() and not _is_within(path, root)
    if corpora and not (is_path and ("/" in reference or path.suffix)) and (corpus := _find_corpus(root, reference)):
        if is_path and progress:
            progress.note(f"{reference}: using the corpus; write ./{reference} for the path of this name")
        return corpus_inputs(corpus, deep=deep)
    source, _, part = reference.partition("/")
    is_bare = path.name == reference
    pins = read_lock_file(root, source) if is_valid_name(source) and (is_bare or not is_path) else {}
    if pins and not is_path:
        return _source_part(root, source, part, pins, deep, include, exclude)
    if pins and progress:
        raw = source_folder(root, source)
        progress.note(f"{reference}: using the path; write {raw} for the downloaded source of this name")
    if regular_file(path).is_file():
        require_text(path)
        return _local_files(root, {path: path.name}, deep)
    if path.is_dir():
        data = walk(path, include=include, exclude=exclude, leave_out=(root,), text_fields=text_fields)
        if left_out is not None:
            left_out += data.left_out
        return _local_files(root, {file: file.relative_to(path).as_posix() for file in data.files}, deep)
    raise _no_input(reference, corpora)


def _no_input(reference: str, corpora: bool) -> InputMissing:
    source = reference.partition("/")[0]
    if source in CATALOGUE:
        command = "download pile --shards 0,val" if source == "pile" else f"download {source}"
        return InputMissing(f"the source {source} is not downloaded yet", hint=f"run `{command}` first")
    kinds = ("corpus", "downloaded source") if corpora else ("downloaded source",)
    ranked = ("file or folder", *kinds) if is_like_path(reference) else (*kinds, "file or folder")
    *first, last = (f"no {kind}" for kind in ranked)
    return NoSuchInput(
        f"{reference}: {', '.join(first)} and {last} has this name", hint=f"{similar_path(reference)}{_CHECK_NAMES}"
    )


def _is_within(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def corpus_inputs(corpus: artifact.Artifact, *, deep: bool = False) -> list[InputFile]:
    """Return the files of documents of a corpus. Raises BadData if they are damaged.

    All have the name of the corpus. The digest of an only file is that of the corpus, as before corpora had parts.
    """
    records = corpus_files.document_records(artifact.require_intact(corpus))
    stamps = [file_stamp(corpus.file(record.name)) for record in records]
    if deep and (problems := artifact.find_problems(corpus, deep=True)):
        raise BadData(problems[0], hint="run `clean` again")
    digests = [record.sha256 for record in records] if len(records) > 1 else [corpus.digest]
    return [
        InputFile(corpus.file(record.name), corpus.ref, digest, stamp, corpus=corpus)
        for record, digest, stamp in zip(records, digests, stamps, strict=True)
    ]


def pinned_files(root: Path, source: str, names: Collection[str], *, deep: bool = False) -> list[InputFile]:
    """Return files of a downloaded source, sorted by name; those of a local folder in natural order, as in the folder.

    Raises BadData if one is damaged.
    """
    pins, input_files = read_lock_file(root, source), []
    is_local = source not in CATALOGUE and not any(
        pin.origin.startswith(("https://", "http://")) for pin in pins.values()
    )
    for name in sorted({*names} & pins.keys(), key=natural_key if is_local else None):
        path = source_folder(root, source) / name
        stamp_before = file_stamp(path) if path.is_file() else Stamp(0, 0, 0, 0)
        if not is_intact(path, pins[name]) or (deep and files.sha256_of(path) != pins[name].sha256):
            raise BadData(f"{path}: not the file that was downloaded", hint="download it again")
        pin = pins[name]
        input_files.append(
            InputFile(path, f"{source}/{name}", pin.sha256, stamp_before, pin.split, members=pin.members)
        )
    return input_files


@contextmanager
def explain_exclude(paths: Collection[Path], named: Collection[str]) -> Iterator[None]:
    """Add to the hint of an error about one of several files how to leave that file out, unless the user named it."""
    try:
        yield
    except BadData as error:
        path = next((path for path in paths if error.message.startswith(f"{path}: ")), None)
        if path and len(paths) > 1 and str(path) not in named and "--exclude" not in error.hint:
            error.hint = f"{error.hint}, or leave it out: --exclude {shlex.quote(path.name)}".removeprefix(", or ")
        raise


def require_unchanged(entry: InputFile) -> None:
    """Raise BadData if a file changed after it was hashed.

    A file of the same size and time is hashed again if only its ctime or inode differs: a backup that links it sets
    the ctime, too.
    """
    stamp = file_stamp(entry.path)
    if stamp == entry.stamp:
        return
    is_same = stamp[:2] == entry.stamp[:2] and (entry.corpus or _digest_at(entry.path, stamp) == entry.digest)
    if not is_same:
        raise BadData(
            f"{entry.path}: the file changed while it was read",
            hint="run the same command again when the file is complete",
        )


@functools.lru_cache
def _digest_at(path: Path, stamp: Stamp) -> str:
    """Return the sha256 of a file, computed once for each stamp: a large file is checked after each of its units."""
    return files.sha256_of(path)


def _find_corpus(root: Path, reference: str) -> artifact.Artifact | None:
    try:
        return artifact.find(root, "corpora", reference)
    except InputMissing:
        return None


def _dataset_files(root: Path, reference: str, deep: bool) -> list[InputFile]:
    source = with_folder(root, resolve_source(reference, environment={}))
    pins = read_lock_file(root, source.name)
    names = [name for name, pin in pins.items() if source.dataset and source.dataset.has_origin(pin.origin)]
    if not names:
        raise InputMissing(f"{reference} is not downloaded yet", hint=f"run `download {reference}` first")
    return pinned_files(root, source.name, names, deep=deep)


def _source_part(
    root: Path,
    source: str,
    part: str,
    pins: dict[str, RawFile],
    deep: bool,
    include: Sequence[str],
    exclude: Sequence[str],
) -> list[InputFile]:
    names = {name for name in pins if not part or name == part or name.startswith(part.rstrip("/") + "/")}
    if not names:
        raise InputMissing(
            f"{source}/{part}: no such file was downloaded", hint=f"downloaded: {', '.join(sorted(pins))}"
        )
    if include:
        names = {name for name in names if matches(name, include)}
    names = {name for name in names if not matches(name, exclude)}
    if not names:
        raise InputMissing(
            f"{source}: --include and --exclude leave none of its files", hint=f"downloaded: {', '.join(sorted(pins))}"
        )
    return pinned_files(root, source, names, deep=deep)


def _local_files(root: Path, names: dict[Path, str], deep: bool) -> list[InputFile]:
    for name in names.values():
        require_utf8(name)
    stamps = [file_stamp(path) for path in names]  # before hashing, so that a change in between is noticed on reading
    digests = local_hashes(root, list(names), deep=deep)
    return [InputFile(*fields) for fields in zip(names, names.values(), digests, stamps, strict=True)]
