"""Datasets of the Hugging Face hub: `hf:OWNER/NAME@REVISION`, the listing of their files, and which of them are data.

This module sends no requests; `hub.py` fetches the listing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import humanize
import msgspec

from pipeline.errors import BadConfig, InputMissing
from pipeline.runtime.terminal import counted

PREFIX = "hf:"
MAX_BYTES = 50_000_000_000  # of a dataset that is fetched without --include
_REFERENCE = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?"
)
_PACKED = r"(?:\.(?:zst|gz|bz2|xz))?"
# A dataset often has the same rows in several formats. Without --include the first of these that it has is fetched.
_FORMATS = (
    ("Parquet", re.compile(r"\.parquet$", re.IGNORECASE)),
    ("JSON lines", re.compile(rf"\.(?:jsonl|ndjson|jl){_PACKED}$", re.IGNORECASE)),
    ("JSON", re.compile(rf"\.json{_PACKED}$", re.IGNORECASE)),
    ("CSV", re.compile(rf"\.(?:csv|tsv){_PACKED}$", re.IGNORECASE)),
    ("Arrow", re.compile(r"\.arrow$", re.IGNORECASE)),
    ("text", re.compile(rf"\.(?:txt|text){_PACKED}$", re.IGNORECASE)),
)
_ABOUT_THE_DATASET = re.compile(
    r"(?:readme|licen[cs]e|notice|citation|changelog|requirements)\b.*"
    r"|(?:dataset_infos?|dataset_dict|state|config|package|tokenizer|tokenizer_config)\.json",
    re.IGNORECASE,
)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_MAX_FOLDERS = 4  # named in an error


class DatasetFile(msgspec.Struct, frozen=True):
    """A file of a dataset: its path, its size in bytes, and its sha256 ("" for a small file, which has none)."""

    path: str
    size: int
    sha256: str = ""


class Listing(msgspec.Struct, frozen=True):
    """All files of a dataset at one commit; `revision` is the branch, tag or commit that was asked for."""

    repository: str
    revision: str
    commit: str
    files: tuple[DatasetFile, ...]


@dataclass(frozen=True)
class Dataset:
    """A dataset on a server with the hub's API, and the patterns of the files to fetch.

    A pattern is compared, without regard to case, with the path and with its last part; its `*` matches slashes too.
    """

    repository: str
    revision: str
    endpoint: str
    token: str = field(default="", repr=False)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision != "main" else "")

    @property
    def name(self) -> str:
        return self.repository.rpartition("/")[2]

    @property
    def page(self) -> str:
        """The URL of the page of the dataset, where a user can accept its terms."""
        return f"{self.endpoint}/datasets/{self.repository}"

    def has_origin(self, url: str) -> bool:
        """Return True if `url` is that of a file of this dataset."""
        return f"/datasets/{self.repository}/resolve/" in url

    def is_chosen(self, path: str) -> bool:
        """Return True unless the patterns leave out `path`. Hidden files are always left out."""
        if any(part.startswith(".") and part not in (".", "..") for part in path.split("/")):
            return False
        return (not self.include or _matches(path, self.include)) and not _matches(path, self.exclude)

    def select(self, listing: Listing) -> list[DatasetFile]:
        """Return the files to fetch, in the order of their paths.

        Raises InputMissing if there are none, BadConfig if they exceed MAX_BYTES and `include` is empty.
        """
        chosen = sorted((file for file in listing.files if self.is_chosen(file.path)), key=lambda file: file.path)
        if not self.include:
            chosen = next((files for _, files in _by_format(chosen) if files), [])
        if not chosen:
            raise self._nothing_chosen(listing)
        total = sum(file.size for file in chosen)
        if total > MAX_BYTES and not self.include:
            raise BadConfig(
                f"{self}: {humanize.naturalsize(total)} in {len(chosen):,} files ({_folders(chosen)})",
                hint=f"choose files with --include, for example --include '{_example(chosen)}'",
            )
        return chosen

    def summary(self, listing: Listing, files: Sequence[DatasetFile]) -> str:
        """Describe in one line what is fetched, and what is left out although it could hold text."""
        total = humanize.naturalsize(sum(file.size for file in files))
        line = f"{self}: {counted(len(files), 'files')}, {total}"
        fetched = {file.path for file in files}
        unfetched = [file for file in listing.files if file.path not in fetched and self.is_chosen(file.path)]
        if left_out := [f"{len(group):,} {name}" for name, group in _by_format(unfetched) if group]:
            line += f"; left out: {', '.join(left_out)} files (--include chooses)"
        return line

    def _nothing_chosen(self, listing: Listing) -> InputMissing:
        suffixes = Counter(PurePosixPath(file.path).suffix or file.path for file in listing.files)
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(_MAX_FOLDERS)) or "none"
        if self.include or self.exclude:
            patterns = " ".join([*self.include, *(f"not {pattern}" for pattern in self.exclude)])
            message = f"{self}: no file matches {patterns}; the dataset has: {counts}"
            example = listing.files[0].path if listing.files else "*"
            return InputMissing(message, hint=f"choose with --include, for example --include '{example}'")
        return InputMissing(
            f"{self}: no Parquet, JSON, CSV or text files; the dataset has: {counts}",
            hint=f"choose with --include, or try the hub's conversion: {PREFIX}{self.repository}@refs/convert/parquet",
        )


def parse(
    reference: str, endpoint: str, token: str = "", include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Dataset:
    """Return the dataset that `hf:OWNER/NAME@REVISION` names; without a revision the branch main."""
    match = _REFERENCE.fullmatch(reference.removeprefix(PREFIX))
    if not match or ".." in reference:
        raise BadConfig(
            f"{reference[:200]}: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION",
            hint=f"for example {PREFIX}Salesforce/wikitext",
        )
    return Dataset(match["repository"], match["revision"] or "main", endpoint, token, tuple(include), tuple(exclude))


def split_of(path: str) -> str:
    """Return "train", "val" or "test" if a word in the file's name or else in a folder's name says so, else ""."""
    for part in reversed(path.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def _matches(path: str, patterns: Sequence[str]) -> bool:
    names = (path.lower(), path.lower().rpartition("/")[2])
    return any(fnmatchcase(name, pattern.lower()) for pattern in patterns for name in names)


def _by_format(files: Sequence[DatasetFile]) -> list[tuple[str, list[DatasetFile]]]:
    """Divide data files by format, in the order of _FORMATS; files about the dataset are left out."""
    data = [file for file in files if not _ABOUT_THE_DATASET.fullmatch(file.path.rpartition("/")[2])]
    return [(name, [file for file in data if suffix.search(file.path)]) for name, suffix in _FORMATS]


def _folders(files: Sequence[DatasetFile]) -> str:
    """Name the folders of `files` with their sizes, the largest first."""
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[file.path.rpartition("/")[0] or "."] += file.size
    names = [f"{folder} {humanize.naturalsize(size)}" for folder, size in sizes.most_common(_MAX_FOLDERS)]
    return ", ".join(names) + (f" and {len(sizes) - _MAX_FOLDERS:,} more folders" if len(sizes) > _MAX_FOLDERS else "")


def _example(files: Sequence[DatasetFile]) -> str:
    """Return a pattern that chooses a part of `files`: the smallest folder, or the first file."""
    folders = {file.path.rpartition("/")[0] for file in files}
    if len(folders) < 2:
        return files[0].path
    sizes = {folder: sum(file.size for file in files if file.path.rpartition("/")[0] == folder) for folder in folders}
    smallest = min(sorted(sizes), key=lambda folder: sizes[folder])
    return f"{smallest}/*" if smallest else files[0].path
