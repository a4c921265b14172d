"""Resolve the name of a source to a list of files, without network access.

`catalogue.toml` lists the public sources; `hf:OWNER/NAME` is a dataset of the Hugging Face hub; any other name is a URL
or a local path.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

import msgspec

from pipeline.errors import BadConfig, InputMissing, suggestion
from pipeline.runtime.redaction import redact_url
from pipeline.runtime.regular_file import regular_file, require_utf8
from pipeline.sources import dataset as datasets
from pipeline.sources.walk import LeftOut, matches, require_text, walk
from pipeline.store.manifest import name_from_path

HUB = "https://huggingface.co"
RAW_GITHUB = "https://raw.githubusercontent.com"
ARCHIVES_GITHUB = "https://codeload.github.com"
PILE_TRAIN_SHARDS = 30
_SAMPLE = Path(__file__).parent.parent / "sample"


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: its path in the raw cache, and its URLs or local path.

    `urls` are equivalent, tried in order if one answers 404; `local` is set instead for a file on this machine. `split`
    is "train", "val" or "test" if the source defines it, else "". `is_bare_url` is True if the URL identifies the file,
    False for a file of the catalogue, whose URL depends on the mirror. `size` in bytes, `sha256` and `commit` are those
    of the listing of a dataset, else None or "". `members` is the pattern of the files to read of an archive.
    """

    name: str
    urls: tuple[str, ...] = ()
    local: Path | None = None
    split: str = ""
    token: str = field(default="", repr=False)
    is_bare_url: bool = False
    size: int | None = None
    sha256: str = ""
    commit: str = ""
    members: str = ""


@dataclass(frozen=True)
class Source:
    """A source and its files; `left_out` lists the entries of a local folder that are not read.

    The files of a dataset are empty until `hub.list_source` sets them and `listing`. `origin` is the path, URL, dataset
    or recipe that the files come from, "" for a name of the catalogue, which alone owns its folder of the raw cache.
    `folders` are the local folders that files come from, each with the prefix of the names of its files.
    """

    name: str
    files: tuple[SourceFile, ...]
    dataset: datasets.Dataset | None = None
    listing: datasets.Listing | None = None
    left_out: tuple[LeftOut, ...] = ()
    origin: str = ""
    folders: tuple[tuple[str, Path], ...] = ()

    def original(self, name: str) -> Path | None:
        """Return the local path that a file with this name has, or had, at the origin; None if it has none."""
        paths = (folder / name.removeprefix(prefix) for prefix, folder in self.folders if name.startswith(prefix))
        return next(paths, None)


class PublicSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Entry of `catalogue.toml`, which explains the fields."""

    what: str
    licence: str
    bytes: int
    repository: str = ""
    files: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()
    members: str = ""
    parts: tuple[str, ...] = ()
    dataset: str = ""
    bundled: tuple[str, ...] = ()
    left_out: str = ""

    def paths(self) -> tuple[str, ...]:
        """Return the paths of its files in `repository`, those of its parts first."""
        own = (path for pattern in self.files for path in _expand(pattern))
        return (*(path for part in self.parts for path in CATALOGUE[part].paths()), *own)


def _expand(pattern: str) -> Iterator[str]:
    """Yield what a pattern stands for: `a{1..3}` and `a{1,2,3}` are a1, a2 and a3; `{0..9000..1000}` has a step."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        yield pattern
        return
    if span := re.fullmatch(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?", braces[1]):
        first, last, step = int(span[1]), int(span[2]), int(span[3] or 1)
        choices = [f"{number:0{len(span[1])}}" for number in range(first, last + 1, step)]
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from _expand(pattern[: braces.start()] + choice + pattern[braces.end() :])


_TABLE = Path(__file__).parents[1] / "catalogue.toml"
CATALOGUE: dict[str, PublicSource] = msgspec.convert(
    tomllib.loads(_TABLE.read_text(encoding="utf-8")), dict[str, PublicSource]
)
_SOURCES = ", ".join((*CATALOGUE, f"{datasets.PREFIX}OWNER/NAME"))


def resolve_source(
    reference: str,
    *,
    shards: str = "",
    mirror: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    leave_out: Sequence[Path] = (),
    text_fields: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Source:
    """Return the source that `reference` names: a catalogue name, a dataset of the hub, a URL, or a path.

    `shards` selects files of the Pile ("0-2,val"). `mirror` replaces the scheme and host of catalogue URLs; it may
    serve the files under the same path, under their path in the repository, or at its root. It may also be a local
    folder: a clone of the repository, or a folder of clones. HF_ENDPOINT and HF_TOKEN are read from `environment`.
    `include` and `exclude` choose the files of a folder or dataset; `leave_out` and `text_fields` apply to a folder
    (see `walk`).
    Raises BadConfig for invalid options or URLs, InputMissing if nothing has that name, BadData for a file that is not
    text.
    """
    if shards and reference != "pile":
        raise BadConfig(f"--shards is for the source pile, not for {reference}", hint="leave out --shards")
    if reference.startswith(datasets.PREFIX):
        endpoint, token = _hub(mirror, environment)
        dataset = datasets.parse(reference, endpoint, token, include, exclude)
        return Source(_own_name(dataset.name), (), dataset, origin=f"{datasets.PREFIX}{dataset.repository}")
    if (include or exclude) and not Path(reference).is_dir():
        raise BadConfig(
            f"--include and --exclude are for a folder or {datasets.PREFIX}OWNER/NAME, not for {reference}",
            hint="leave them out",
        )
    if reference in CATALOGUE and (bundled := CATALOGUE[reference].bundled):
        return Source(reference, tuple(SourceFile(name, local=_SAMPLE / name) for name in bundled))
    if reference in CATALOGUE and (repository := CATALOGUE[reference].dataset):
        dataset = datasets.parse(repository, *_hub(mirror, environment), CATALOGUE[reference].files, ())
        return Source(reference, (), dataset)
    if reference == "pile":
        endpoint, token = _hub(mirror, environment)
        return Source("pile", tuple(_pile_file(shard, endpoint, token) for shard in pile_shards(shards)))
    if reference in CATALOGUE:
        entry, folder = CATALOGUE[reference], _folder(mirror)
        files = _files_in(entry, folder) if folder else _files_at(entry, mirror.rstrip("/"))
        return Source(reference, tuple(files))
    if re.match(r"https?://", reference):
        try:
            file_name = unquote(urlsplit(reference).path).rsplit("/", 1)[-1]
        except ValueError as error:
            raise BadConfig(f"{reference}: invalid URL: {error}", hint="check the URL") from None
        if not re.fullmatch(r"[^/\x00]{1,200}", file_name) or file_name.startswith("."):
            raise BadConfig(
                f"{reference}: the URL must end in a file name", hint="pass the URL of a file, not of a folder"
            )
        file = SourceFile(file_name, (reference,), is_bare_url=True)
        return Source(_own_name(file_name), (file,), origin=redact_url(reference))
    if not reference:
        raise BadConfig(
            "a source name is empty", hint=f"sources: {', '.join(CATALOGUE)}, hf:OWNER/NAME, a URL or a path"
        )
    return _local(Path(reference), include, exclude, leave_out, text_fields)


def _hub(mirror: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the address of the hub or its mirror, and the token if it may be sent there: over TLS, or to localhost."""
    if _folder(mirror):
        raise BadConfig(
            f"--mirror {mirror}: the hub's mirror is a URL", hint="serve the folder, or name it as the source"
        )
    endpoint = (mirror or environment.get("HF_ENDPOINT") or HUB).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        is_private = parts.scheme == "https" or parts.hostname in ("127.0.0.1", "::1", "localhost")
    except ValueError as error:
        raise BadConfig(f"{endpoint}: invalid URL: {error}", hint="check --mirror and HF_ENDPOINT") from None
    return endpoint, environment.get("HF_TOKEN", "").strip() if is_private else ""


def _own_name(file_name: str) -> str:
    """Return the name of a source that is not in the catalogue: `pile.txt` must not share a folder with the Pile."""
    name = name_from_path(file_name)
    return f"my-{name}" if name in CATALOGUE else name


def pile_shards(shards: str) -> list[str]:
    """Return the paths of the Pile's files in a list like "0-2,val,test" or "all", in order without duplicates."""
    if not shards:
        raise BadConfig(
            "the Pile is over 300 GB", hint="select files with --shards, for example --shards 0,val or --shards all"
        )
    if shards == "all":
        shards = f"0-{PILE_TRAIN_SHARDS - 1},val,test"
    paths: list[str] = []
    for part in shards.split(","):
        if part.strip() in ("val", "test"):
            paths.append(f"{part.strip()}.jsonl.zst")
            continue
        span = re.fullmatch(r"\s*(\d{1,2})(?:-(\d{1,2}))?\s*", part)
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (0, -1)
        if not first <= last < PILE_TRAIN_SHARDS:
            raise BadConfig(
                f"--shards {shards}: expected numbers up to {PILE_TRAIN_SHARDS - 1}, val, test or all, got {part!r}",
                hint="for example --shards 0-2,val",
            )
        paths += [f"train/{number:02d}.jsonl.zst" for number in range(first, last + 1)]
    return list(dict.fromkeys(paths))


def _pile_file(path: str, endpoint: str, token: str) -> SourceFile:
    urls = (f"{endpoint}/datasets/monology/pile-uncopyrighted/resolve/main/{path}", f"{endpoint}/{path}")
    split = path.split("/")[0].split(".")[0]
    return SourceFile(path, urls if endpoint != HUB else urls[:1], split=split, token=token)


# Repositories of GitHub and their mirrors


def _folder(mirror: str) -> Path | None:
    """Return the folder that `mirror` names, None if it is a URL or empty."""
    if not mirror or re.match(r"https?://", mirror):
        return None
    path = Path(unquote(mirror.removeprefix("file://")) if mirror.startswith("file://") else mirror)
    if not path.is_dir():
        raise BadConfig(f"--mirror {mirror}: neither a URL nor a folder", hint="for example http://127.0.0.1:8000")
    return path


def _names(paths: Sequence[str]) -> list[str]:
    """Return the names in the raw cache: the paths, without the folder if all files are in one."""
    parents = {PurePosixPath(path).parent for path in paths}
    return [PurePosixPath(path).name if len(parents) == 1 else path for path in paths]


def _files_at(entry: PublicSource, mirror: str) -> Iterator[SourceFile]:
    """Yield the files of a public source on GitHub, or on a mirror."""
    paths = entry.paths()
    for path, name in zip(paths, _names(paths), strict=True):
        shapes = (f"{entry.repository}/HEAD/{path}", path, PurePosixPath(path).name)
        yield SourceFile(name, _urls(RAW_GITHUB, mirror, shapes))
    for repository in entry.archives:
        name = f"{repository.rpartition('/')[2]}.tar.gz"
        yield SourceFile(
            name, _urls(ARCHIVES_GITHUB, mirror, (f"{repository}/tar.gz/HEAD", name)), members=entry.members
        )


def _urls(server: str, mirror: str, shapes: Sequence[str]) -> tuple[str, ...]:
    if not mirror:
        return (f"{server}/{quote(shapes[0])}",)
    return tuple(dict.fromkeys(f"{mirror}/{quote(shape)}" for shape in shapes))


def _files_in(entry: PublicSource, folder: Path) -> Iterator[SourceFile]:
    """Yield the files of a public source in a clone of its repository, or in a folder of clones.

    Raises InputMissing if there is one that it lacks.
    """
    paths = entry.paths()
    for path, name in zip(paths, _names(paths), strict=True):
        tops = (f"{entry.repository}/HEAD", entry.repository, entry.repository.rpartition("/")[2], "")
        shapes = (*(folder / top / path for top in tops), folder / PurePosixPath(path).name)
        local = next((shape for shape in shapes if shape.is_file()), None)
        if not local:
            raise _not_in(folder, path, entry.repository)
        yield SourceFile(name, local=local)
    for repository in entry.archives:
        yield from _clone_files(repository, entry.members, folder)


def _clone_files(repository: str, members: str, folder: Path) -> Iterator[SourceFile]:
    """Yield the archive of a repository if the folder has it, or else the files of its clone that match `members`."""
    name = repository.rpartition("/")[2]
    if (archive := folder / f"{name}.tar.gz").is_file():
        yield SourceFile(archive.name, local=archive, members=members)
        return
    for clone in (folder / repository, folder / name, folder):
        if not clone.is_dir():
            continue
        paths = sorted(path for path in clone.rglob(members.rpartition("/")[2]) if path.is_file())
        inside = [path.relative_to(clone).as_posix() for path in paths]
        if chosen := [path for path in inside if matches(f"{name}/{path}", [members])]:
            yield from (SourceFile(f"{name}/{path}", local=clone / path) for path in chosen)
            return
    raise _not_in(folder, f"{name}/{members.removeprefix('*/')}", repository)


def _not_in(folder: Path, path: str, repository: str) -> InputMissing:
    hint = f"name a clone of https://github.com/{repository}, or a folder of clones"
    return InputMissing(f"--mirror {folder}: no file {path}", hint=hint)


def _local(
    path: Path,
    include: Sequence[str],
    exclude: Sequence[str],
    leave_out: Sequence[Path],
    text_fields: Sequence[str],
) -> Source:
    require_utf8(os.path.abspath(path))
    if regular_file(path).is_file():
        require_text(path)
        file = SourceFile(path.name, local=path)
        return Source(_own_name(path.name), (file,), origin=os.path.abspath(path), folders=(("", path.parent),))
    if path.is_dir():
        data = walk(path, include=include, exclude=exclude, leave_out=leave_out, text_fields=text_fields)
        for entry in data.files:
            require_utf8(str(entry))
        files = tuple(SourceFile(file.relative_to(path).as_posix(), local=file) for file in data.files)
        origin = os.path.abspath(path)
        name = _own_name(os.path.basename(origin))
        return Source(name, files, left_out=tuple(data.left_out), origin=origin, folders=(("", path),))
    expected = (
        "check the path, or see `download --list` for sources"
        if is_like_path(str(path))
        else f"sources: {_SOURCES}, a URL, a file, or a folder"
    )
    raise InputMissing(f"{path}: neither a path nor a source", hint=f"{similar_path(str(path))}{expected}")


def is_like_path(reference: str) -> bool:
    """Return True if a name looks like a path: it has a slash or a suffix."""
    return "/" in reference or Path(reference).suffix != ""


def similar_path(reference: str) -> str:
    """Return the beginning of a hint, for a name that matches nothing: a similar entry of its folder, or source."""
    names = [] if "/" in reference else list(CATALOGUE)
    with suppress(OSError):
        names += sorted(os.listdir(Path(reference).parent))
    return suggestion(Path(reference).name, names)
