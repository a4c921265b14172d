"""Objects in a bucket that a stage reads: listed, chosen by name, and copied into the folder `objects` of the store.

    objects/<hash of bucket and name>/<hash of the ETag>/<last part of the name>

A copy is made once for each version (ETag) of an object, and replaces that of an earlier version. An object that
changes between listing and reading is refused. Stages read the copies like any local file, under the same names, so
that tokens of a bucket and of a local folder with the same files have the same key.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InputMissing
from pipeline.readers.kinds import has_text_suffix
from pipeline.runtime.progress import Progress
from pipeline.sources.order import natural_key
from pipeline.sources.walk import LeftOut, matches, require_text
from pipeline.store import files
from pipeline.store.bucket import Bucket, Object, split_url
from pipeline.store.leftovers import remove_leftovers_of

FOLDER = "objects"
_WILDCARDS = "*?["


def fetch_objects(
    root: Path,
    url: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    left_out: list[LeftOut] | None = None,
    progress: Progress | None = None,
) -> dict[Path, str]:
    """Return local copies of the objects that `url` names, in natural order, each with its name below the folder.

    It names one object, a pattern such as `s3://bucket/pile/*.jsonl.zst` in which `*` matches no "/", or a folder. Of
    a folder, objects with the suffix of a text are taken, or those that `include` matches; `exclude` leaves out more.

    Raises InputMissing if there is none, UpstreamChanged if one changes meanwhile, NotText for one that is named and
    holds no text, StorageFailed if the disk is too small.
    """
    bucket_url, pattern = split_url(url)
    bucket = Bucket(bucket_url)
    objects = _list(bucket, pattern)
    if isinstance(objects, Object):
        return {_checked(_copy(root, bucket, objects, progress)): objects.name.rpartition("/")[2]}
    entries = {}
    for name, entry in sorted(objects.items(), key=lambda item: natural_key(item[0])):
        reason = _reason(name, entry, include, exclude)
        if not reason:
            entries[name] = entry
        elif left_out is not None:
            left_out.append(LeftOut(name, reason))
    if not entries:
        raise InputMissing(f"{url}: no object to read there", hint="check the URL, --include and --exclude")
    return {_copy(root, bucket, entry, progress): name for name, entry in entries.items()}


def _list(bucket: Bucket, pattern: str) -> Object | dict[str, Object]:
    """Return the one object of that name, or those of the pattern or folder, by their names below its fixed folder."""
    first = next((index for index, char in enumerate(pattern) if char in _WILDCARDS), len(pattern))
    folder = pattern
    if first < len(pattern):
        folder = pattern[:first].rpartition("/")[0]
    elif pattern and (entry := bucket.stat(pattern)):
        return entry
    below = f"{folder}/" if folder else ""
    objects = {entry.name.removeprefix(below): entry for entry in bucket.objects(folder)}
    if folder == pattern:
        return objects
    return {name: entry for name, entry in objects.items() if _matches(name, pattern.removeprefix(below))}


def _matches(name: str, pattern: str) -> bool:
    """Return True if each part of a name matches that of the pattern."""
    parts, globs = name.split("/"), pattern.split("/")
    return len(parts) == len(globs) and all(map(fnmatch.fnmatchcase, parts, globs))


def _reason(name: str, entry: Object, include: Sequence[str], exclude: Sequence[str]) -> str:
    """Return why an object is left out; "" if it is read."""
    if matches(name, exclude):
        return "excluded"
    if include:
        return "" if matches(name, include) else "not included"
    if not entry.size:
        return "empty"
    return "" if has_text_suffix(name.rpartition("/")[2]) else "no suffix of a text"


def _copy(root: Path, bucket: Bucket, entry: Object, progress: Progress | None) -> Path:
    """Return a copy of this version of an object, and delete that of an earlier one."""
    folder = root / FOLDER / _digest(f"{bucket.url}/{entry.name}")
    target = folder / _digest(f"{entry.tag} {entry.size}") / entry.name.rpartition("/")[2]
    if files.file_size(target) == entry.size:
        return target
    files.require_space(root, entry.size)
    if progress:
        progress.note(f"fetching {bucket.url}/{entry.name}, {entry.size:,} bytes")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers_of(target)
    with files.new_file(target) as out:
        for block in bucket.stream(entry.name, entry):
            out.write(block)
    for earlier in folder.iterdir():
        if earlier != target.parent:
            files.remove_tree(earlier)
    return target


def _checked(path: Path) -> Path:
    require_text(path)
    return path


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
