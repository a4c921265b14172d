"""Select the files of a folder that hold text, and list the others with the reason why each is left out.

Files are selected by name first: hidden entries, backups of editors, folders of other tools and artifacts are skipped,
and so are files that have no suffix of a text and match no `--include`. The others are opened and selected by content:
empty files, images and other kinds are left out, and files with the same text as an earlier one.

Three kinds of entries are errors, because text would be missing without a message: a link whose target does not exist,
an entry that may not be read, and a pointer of Git LFS or a similar program instead of a file.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import mimetypes
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import BadData, InkstoneError, InputMissing, NotPermitted, from_os_error
from pipeline.readers import binary
from pipeline.readers.compression import compression_suffix, is_same_text
from pipeline.readers.kinds import FORMATS, NO_FIELD, detect_kind, has_text_suffix, without_compression
from pipeline.runtime.progress import Progress
from pipeline.runtime.terminal import counted
from pipeline.sources.order import natural_key
from pipeline.store import files
from pipeline.store.manifest import KINDS

LOCK_FILE = "sources.lock.json"  # of the raw cache
_FOLDERS_OF_TOOLS = ("__MACOSX", "node_modules", "__pycache__")
_EDITOR_COPIES = ("*~", "#*#", "*.swp", "*.swo")
_SAME = "same as "
_HEAD = 1 << 16  # bytes that are compared before files of equal size are hashed
_MAX_OPENED = 100  # files of other suffixes that are opened for the hint of an error
_MAX_DEPTH = 100  # folders within folders; resolving their paths takes time that grows with the square
_MAX_REASONS = 6  # in the summary
_DOCUMENTS = re.compile(  # reasons of files with text in formats that are not read; summaries list them first
    r"an? (?:PDF|(?:old )?Word file|RTF file|OpenDocument file|Kindle book|DjVu file|"
    r"\.(?:docx?|odt|rtf|pdf|wps|pages|mobi|azw3?|djvu|chm|caj|umd) file)"
)
_MAX_PROPOSED = 3  # suffixes in the summary


@dataclass(frozen=True)
class LeftOut:
    """An entry of a folder that is not read: its path below the folder, ending in "/" for a folder, and the reason.

    `is_proposed`: it is one of the texts with another suffix that together hold more than all that is read.
    """

    name: str
    reason: str
    is_proposed: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Walk:
    """The files of a folder to read, in natural order, and the entries that are left out, in order of their names."""

    files: list[Path]
    left_out: list[LeftOut]


class NotText(BadData):
    """A file, or several, that cannot be read as text; `reason` says why."""

    def __init__(self, message: str, *, hint: str = "", path: Path | None = None, reason: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path, self.reason = path, reason


def walk(
    folder: Path,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    leave_out: Sequence[Path] = (),
    text_fields: Sequence[str] = (),
) -> Walk:
    """Select the files of `folder` and of the folders in it. Links to folders are followed once.

    With `include`, only files that match one of these patterns are taken, whatever their suffix. Files and folders
    that match one of `exclude` are left out. A pattern is compared, without regard to case, with the name and with the
    path below `folder`; its `*` stands for any characters, `/` too. `leave_out` lists artifacts folders. JSON without a
    text field is left out, unless the user named `text_fields`.

    Raises InputMissing if no file is left or for a link without a target, NotPermitted for an unreadable entry, NotText
    for a pointer in the place of a file.
    """
    search = _Search(folder, include, exclude, {os.path.realpath(path) for path in leave_out})
    try:
        search.read()
        search.keep_texts(take_any_json=bool(text_fields))
        search.keep_one_of_compressed()
        search.keep_one_of_equal()
        search.propose_other_suffixes()
    except OSError as error:
        raise _unreadable(error, folder) from None
    if not search.names:
        raise _nothing_left(folder, search.left_out, include)
    left_out = sorted(search.left_out, key=lambda entry: natural_key(entry.name))
    return Walk([folder / name for name in search.names], left_out)


def require_text(path: Path) -> None:
    """Raise NotText if a file that the user named is empty or of a kind that holds no text.

    Binary data and JSON without a text field are left to their readers, whose errors say where it is, and list the
    fields.
    """
    try:
        problem = detect_kind(path).problem
    except OSError as error:
        raise _unreadable(error, path) from None
    if problem == "empty":
        message = f"{path}: the file is empty or holds only white space"
        raise NotText(message, hint="leave it out", path=path, reason=problem)
    if binary.is_pointer(problem):
        raise _pointer(path, problem)
    if problem not in ("", "not text", NO_FIELD):
        hint = binary.hint_for(problem).removesuffix("leave it out")
        hint = f"{hint}, or leave it out" if hint else "leave it out"
        raise NotText(f"{path}: {problem}, not text", hint=hint, path=path, reason=problem)


def _pointer(path: Path, kind: str) -> NotText:
    message, hint = f"{path}: {kind}, not the file itself", binary.hint_for(kind)
    return NotText(message, hint=f"{hint}, or leave it out", path=path, reason=kind)


def summarize(left_out: Sequence[LeftOut], taken: int) -> str:
    """Return one line on the entries left out beside `taken` files, for example "left out 2 of 9 files: 2 images".

    Documents such as .docx come first, then the commonest reasons; of the others only the kinds are named.
    """
    counts = Counter(entry.reason for entry in left_out if not entry.name.endswith("/"))
    copies = {reason: count for reason, count in counts.items() if reason.startswith(_SAME)}
    if len(copies) > 1:
        counts = Counter({reason: count for reason, count in counts.items() if reason not in copies})
        counts[f"{_SAME}other files"] = sum(copies.values())
    ranked = sorted(counts.most_common(), key=lambda item: not _DOCUMENTS.fullmatch(item[0]))
    reasons = [_counted(count, reason) for reason, count in ranked[:_MAX_REASONS]]
    if rest := ranked[_MAX_REASONS:]:
        kinds = [_counted(1, reason).removeprefix("1 ").removesuffix(" file") for reason, _ in rest]
        more = ", …" if len(kinds) > _MAX_REASONS else ""
        reasons.append(f"{sum(count for _, count in rest):,} more ({', '.join(kinds[:_MAX_REASONS])}{more})")
    total = sum(counts.values())
    lines = [f"{total:,} of {taken + total:,} files: {', '.join(reasons)}"] if total else []
    if folders := [f"{entry.name} ({entry.reason})" for entry in left_out if entry.name.endswith("/")]:
        more = f" and {len(folders) - _MAX_REASONS} more" if len(folders) > _MAX_REASONS else ""
        noun = "folder" if len(folders) == 1 else f"{len(folders):,} folders:"
        lines.append(f"{noun} {', '.join(folders[:_MAX_REASONS])}{more}")
    if counted_suffixes := Counter(Path(entry.name).suffix for entry in left_out if entry.is_proposed):
        suffixes = [suffix for suffix, _ in counted_suffixes.most_common(_MAX_PROPOSED)]
        globs = " ".join(f'--include "*{suffix}"' for suffix in suffixes)
        lines.append(f"the {', '.join(suffixes)} files hold more text than is read: {globs} reads them instead")
    return f"left out {'; '.join(lines)}"


def note_left_out(
    progress: Progress, left_out: Sequence[LeftOut], taken: int, *, listed_by: str = "download --dry-run --json"
) -> None:
    """Report what was left out in one line, if anything was. `listed_by` is the command or option that lists all."""
    if left_out:
        progress.note(f"{summarize(left_out, taken)} ({listed_by} lists all)")


def as_records(left_out: Iterable[LeftOut]) -> list[dict[str, str]]:
    """Return the entries for a JSON object."""
    return [{"name": entry.name, "reason": entry.reason} for entry in left_out]


def matches(name: str, globs: Sequence[str]) -> bool:
    """Return True if a path below a folder, or its last part, matches one of the patterns, in any case."""
    path = name.casefold()
    return any(
        fnmatch.fnmatchcase(candidate, glob.casefold().removeprefix("./").rstrip("/"))
        for glob in globs
        for candidate in (path, path.rpartition("/")[2])
    )


@dataclass
class _Search:
    """The state of one walk: `names` are the selected files, as paths below `folder`, with their sizes."""

    folder: Path
    include: Sequence[str]
    exclude: Sequence[str]
    stores: set[str]  # real paths of artifacts folders
    names: dict[str, int] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    visited: dict[str, str] = field(default_factory=dict)  # name of each folder that was read, by its real path
    other: dict[str, int] = field(default_factory=dict)  # sizes of files that are left out because of their suffix
    links: list[str] = field(default_factory=list)  # folders to follow after all others, so that real paths win

    def read(self) -> None:
        """Collect the files by their names, folder by folder."""
        self._read_tree("")
        while self.links:
            links, self.links = sorted(self.links, key=natural_key), []
            for name in links:
                self._read_tree(name)
        self.names = {name: self.names[name] for name in sorted(self.names, key=natural_key)}

    def drop(self, name: str, reason: str) -> None:
        self.names.pop(name, None)
        self.left_out.append(LeftOut(name if name.isprintable() else ascii(name)[1:-1], reason))

    def _read_tree(self, top: str) -> None:
        pending = [top]
        while pending:
            name = pending.pop()
            if name.count("/") >= _MAX_DEPTH:
                self.drop(f"{name}/", f"more than {_MAX_DEPTH} folders deep")
                continue
            path = self.folder / name
            real = os.path.realpath(path)
            if real in self.visited:
                self.drop(f"{name}/", f"{_SAME}{self.visited[real] or self.folder}")
                continue
            with os.scandir(path) as listing:
                entries = list(listing)
            is_store = real in self.stores or _is_store(path, {entry.name for entry in entries})
            if is_store and name:
                self.drop(f"{name}/", "artifacts")
                continue
            self.visited[real] = name
            is_cache = any(entry.name == LOCK_FILE for entry in entries)
            for entry in entries:
                entry_name = f"{name}/{entry.name}" if name else entry.name
                is_folder = os.path.isdir(entry.path)
                is_artifact = is_store and entry.name in (*KINDS, "raw")
                if is_artifact or (is_cache and entry.name in (LOCK_FILE, "decompressed")):
                    self.drop(f"{entry_name}/" if is_folder else entry_name, "artifacts")
                elif reason := self._reason_by_name(entry.name, entry_name, is_folder):
                    self.drop(f"{entry_name}/" if is_folder else entry_name, reason)
                elif entry.is_symlink() and self._leads_into_store(os.path.realpath(entry.path)):
                    self.drop(f"{entry_name}/" if is_folder else entry_name, "artifacts")
                elif is_folder:
                    (self.links if entry.is_symlink() else pending).append(entry_name)
                else:
                    self._read_entry(entry, entry_name)

    def _leads_into_store(self, real: str) -> bool:
        """Return True for a path in an artifacts folder that does not contain the folder to read."""
        top = f"{os.path.realpath(self.folder)}/"
        stores = (f"{store}/" for store in self.stores)
        return any(f"{real}/".startswith(store) and not top.startswith(store) for store in stores)

    def _read_entry(self, entry: os.DirEntry[str], name: str) -> None:
        """Select a file or leave it out, by its name."""
        try:
            status = entry.stat()
        except OSError as error:
            if not entry.is_symlink() or error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            raise InputMissing(
                f"{entry.path}: a link to {os.readlink(entry.path)}, which does not exist",
                hint=f"mend or delete the link, or leave it out with --exclude {entry.name!r}",
            ) from None
        if not stat.S_ISREG(status.st_mode):
            self.drop(name, "neither a file nor a folder")
        elif reason := self._reason_by_suffix(name):
            self.drop(name, reason)
            if reason.endswith(" file"):
                self.other[name] = status.st_size
        else:
            self.names[name] = status.st_size

    def _reason_by_name(self, base: str, name: str, is_folder: bool) -> str:
        if matches(name, self.exclude):
            return "excluded"
        if base.startswith("."):
            return "hidden"
        if is_folder:
            return "of another tool" if base in _FOLDERS_OF_TOOLS else ""
        return "a backup" if any(fnmatch.fnmatchcase(base, glob) for glob in _EDITOR_COPIES) else ""

    def _reason_by_suffix(self, name: str) -> str:
        if self.include:
            return "" if matches(name, self.include) else "not included"
        if has_text_suffix(name.rpartition("/")[2]):
            return ""
        kind = (mimetypes.guess_type(name)[0] or "").partition("/")[0]
        suffix = Path(name).suffix.casefold()
        return {"image": "an image", "video": "a video", "audio": "a recording"}.get(kind, f"a {suffix} file")

    def keep_texts(self, *, take_any_json: bool) -> None:
        """Leave out the files whose content is not text. With `take_any_json`, JSON without a text field is kept."""
        for name in list(self.names):
            problem = detect_kind(self.folder / name).problem
            if binary.is_pointer(problem):
                raise _pointer(self.folder / name, problem)
            if problem and not (take_any_json and problem == NO_FIELD):
                self.drop(name, problem)

    def keep_one_of_compressed(self) -> None:
        """Leave out compressed copies of a file in the same folder; if only copies exist, all but the first."""
        for same_stem in _groups(self.names, without_compression):
            first, *others = sorted(same_stem, key=lambda name: (compression_suffix(name) != "", natural_key(name)))
            for name in others:
                is_same = is_same_text(self.folder / first, self.folder / name)
                base = first.rpartition("/")[2]
                self.drop(name, f"{_SAME}{base}" if is_same else f"other content than {base} beside it")

    def keep_one_of_equal(self) -> None:
        """Leave out every file that has the same content as one before it."""

        def head(name: str) -> str:
            with open(self.folder / name, "rb") as file:
                return hashlib.sha256(file.read(_HEAD)).hexdigest()

        for same_size in _groups(self.names, lambda name: self.names[name]):
            for same_head in _groups(same_size, head):
                for equal in _groups(same_head, lambda name: files.sha256_of(self.folder / name)):
                    for name in equal[1:]:
                        self.drop(name, f"{_SAME}{equal[0]}")

    def propose_other_suffixes(self) -> None:
        """Mark the texts with other suffixes if they have more bytes than the selected files.

        The files of a suffix count as texts if the largest one is a text.
        """
        read = sum(self.names.values())
        if sum(self.other.values()) <= read:
            return
        proposed: set[str] = set()
        for suffix in {Path(name).suffix for name in self.other}:
            same = [name for name in self.other if Path(name).suffix == suffix]
            with suppress(OSError):
                if not detect_kind(self.folder / max(same, key=lambda name: self.other[name])).problem:
                    proposed.update(same)
        if sum(self.other[name] for name in proposed) > read:
            self.left_out = [replace(entry, is_proposed=entry.name in proposed) for entry in self.left_out]


def _groups(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Return the groups of two or more names that have the same key, in order."""
    groups: dict[Hashable, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _is_store(path: Path, names: set[str]) -> bool:
    """Return True if a folder with the entries `names` is an artifacts folder."""
    patterns = [f"{kind}/*/{'[0-9a-f]' * 16}/manifest.json" for kind in KINDS if kind in names]
    patterns += [f"raw/*/{LOCK_FILE}"] if "raw" in names else []
    return any(next(path.glob(pattern), None) for pattern in patterns)


def _counted(count: int, reason: str) -> str:
    """Return a reason with its count: "a PDF" → "2 PDFs", "empty" → "2 empty"."""
    article, _, noun = reason.partition(" ")
    if article not in ("a", "an"):
        return f"{count:,} {reason}"
    return counted(count, f"{noun}s")


def _unreadable(error: OSError, named: Path) -> InkstoneError:
    """Return the error for an entry that cannot be read; `named` is the file or folder that the user named."""
    path = Path(error.filename or named)
    if not isinstance(error, PermissionError):
        return from_os_error(error)
    hint = "make it readable" + ("" if path == named else f", or leave it out with --exclude {path.name!r}")
    return NotPermitted(f"{path}: permission denied", hint=hint)


def _nothing_left(folder: Path, left_out: Sequence[LeftOut], include: Sequence[str]) -> InputMissing:
    if not left_out:
        return InputMissing(f"{folder}: no file in this folder", hint="name a folder of texts")
    if include:
        return InputMissing(
            f"{folder}: no text matches --include {' '.join(include)}; {summarize(left_out, 0)}",
            hint='quote the pattern, for example --include "*.txt"',
        )
    names = [entry.name for entry in left_out if re.fullmatch(r"a \.\S+ file", entry.reason)][:_MAX_OPENED]
    suffixes = Counter(Path(name).suffix for name in names if _is_readable(folder / name))
    hint = f"name a folder with texts; these are read: {', '.join(FORMATS)}"
    if suffixes:
        suffix = suffixes.most_common(1)[0][0]
        hint = f'files of another suffix come in by --include, for example --include "*{suffix}"'
    return InputMissing(f"{folder}: no text in this folder; {summarize(left_out, 0)}", hint=hint)


def _is_readable(path: Path) -> bool:
    try:
        return not detect_kind(path).problem
    except OSError:
        return False
