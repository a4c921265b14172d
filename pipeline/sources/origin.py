"""Folders of the raw cache, one for each source.

`raw/NAME` belongs to the first source whose path or URL ends in NAME; its file `.origin` names that source. A later
source with the same last name gets `raw/NAME-HASH`, with a hash of its own origin. So two recipes, or two URLs, never
replace each other's files. Folders of older versions have no `.origin`; their pins show the source.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import BadConfig
from pipeline.runtime.progress import Progress
from pipeline.runtime.redaction import redact_url
from pipeline.sources import cache
from pipeline.sources.cache import ORIGIN_FILE, RawFile
from pipeline.sources.catalogue import CATALOGUE, Source
from pipeline.store import files, locks

_MAX_STEM = 71  # characters, so that a name with a hash is valid
_WAIT = 10.0  # seconds; another process holds the lock for an instant


def with_folder(root: Path, source: Source) -> Source:
    """Return the source with the name of its folder in the raw cache. Writes nothing.

    Raises BadData if the lock file of a folder cannot be read, BadConfig if the folder of a catalogue source has files
    of another source, from before its name was in the catalogue.
    """
    if source.name in CATALOGUE and not source.origin and (owner := _owner(root, source.name)):
        folder = cache.source_folder(root, source.name)
        raise BadConfig(f"{folder}: holds the files of {owner}", hint="delete it, or download into another --artifacts")
    if not source.origin or source.name.endswith(_suffix(source)):
        return source
    own = f"{source.name[:_MAX_STEM]}{_suffix(source)}"
    if _owner(root, own) is None and _is_available(root, source.name, source):
        return source
    return dataclasses.replace(source, name=own)


def claim_folder(root: Path, source: Source, progress: Progress) -> Source:
    """Record that a folder of the raw cache belongs to `source`, and return the source with the folder's name.

    If another process claimed the folder since `with_folder`, the source gets another folder. Raises TryAgain if a
    process holds the lock of the raw cache for more than 10 seconds.
    """
    source = with_folder(root, source)
    if not source.origin or _owner(root, source.name) == source.origin:
        return source
    with locks.lock(root / "raw" / ".lock", wait=_WAIT, action="name a source", stop=progress.stop):
        source = with_folder(root, source)
        if _owner(root, source.name) is None:
            path = cache.source_folder(root, source.name) / ORIGIN_FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_file(path, os.fsencode(source.origin))
            if source.name.endswith(_suffix(source)):
                progress.note(f"another source has the same name; the files go to raw/{source.name}")
    return source


def recipe_origin(recipe: str) -> str:
    """Return the origin of the files that a recipe takes from a list of sources."""
    return f"recipe:{recipe}"


def former_pins(root: Path, origins: Sequence[str]) -> list[RawFile]:
    """Return all pins in the folders of the raw cache that belong to one of `origins`."""
    names = [path.parent.name for path in (root / "raw").glob(f"*/{ORIGIN_FILE}")]
    return [pin for name in names if _owner(root, name) in origins for pin in cache.read_lock_file(root, name).values()]


def _owner(root: Path, name: str) -> str | None:
    """Return the origin of the source to which `raw/NAME` belongs, None if the folder has no `.origin`."""
    try:
        return os.fsdecode((cache.source_folder(root, name) / ORIGIN_FILE).read_bytes())
    except FileNotFoundError:
        return None


def _suffix(source: Source) -> str:
    return f"-{hashlib.sha256(os.fsencode(source.origin)).hexdigest()[:8]}"


def _is_available(root: Path, name: str, source: Source) -> bool:
    """Return True if `raw/NAME` is free, or belongs to `source`."""
    if (owner := _owner(root, name)) is not None:
        return owner == source.origin
    pins = cache.read_lock_file(root, name)
    return _has_pinned(source, pins) if pins else name not in CATALOGUE


def _has_pinned(source: Source, pins: Mapping[str, RawFile]) -> bool:
    """Return True if one of the pinned files comes from `source`."""
    if source.dataset:
        return any(source.dataset.has_origin(pin.origin) for pin in pins.values())
    urls = {redact_url(url) for file in source.files for url in file.urls}
    return any(pin.origin in urls or is_copy_of(pin, source.original(name)) for name, pin in pins.items())


def is_copy_of(pin: RawFile, original: Path | None) -> bool:
    """Return True if a pinned file was copied from the path `original`."""
    return original is not None and copied_path(pin) in (os.path.abspath(original), os.path.realpath(original))


def copied_path(pin: RawFile) -> str:
    """Return the path from which a local file was copied."""
    return pin.origin.rsplit(":", 2)[0]
