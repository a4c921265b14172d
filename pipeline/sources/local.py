"""Copies of local files in the raw cache: compare them with their originals, detect lost text, and copy a file.

A local source gets the same checks as a server: a file that vanished or shrank never replaces its copy without an
explicit option, and a file that changes while it is copied is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import TryAgain, UpstreamChanged
from pipeline.runtime.progress import Advance
from pipeline.sources import hashes
from pipeline.sources.cache import RawFile
from pipeline.sources.catalogue import Source, SourceFile
from pipeline.sources.hashes import Stamp
from pipeline.sources.http import Network
from pipeline.sources.origin import copied_path, former_pins, is_copy_of, recipe_origin
from pipeline.store import files

_CHUNK = 1 << 20
_CHOSEN = ("excluded", "not included")  # reasons of files that the user leaves out


def digests(root: Path, source: Source, pins: Mapping[str, RawFile]) -> dict[str, str]:
    """Return the sha256, by name, of the local files of `source` that have the size of a pinned file.

    Files of other sizes differ from every copy, so they are not hashed. Hashes of unchanged files are cached.
    """
    sizes = {pin.size for pin in pins.values()}
    paths = {file.name: file.local for file in source.files if file.local and files.file_size(file.local) in sizes}
    return dict(zip(paths, hashes.local_hashes(root, list(paths.values())), strict=True))


def lost_files(source: Source, pins: Mapping[str, RawFile], current: Mapping[str, str]) -> dict[str, str]:
    """Return, by name, the pinned files whose text the source no longer has, each with the reason.

    A file is lost if it vanished, shrank, or is now left out because of its content. It is not lost if another file
    has the same bytes (`current`: sha256 by name), if the user leaves it out, or if it now comes from another folder.
    """
    if not source.origin:
        return {}
    names, digests_now = {file.name for file in source.files}, {*current.values()}
    reasons = {entry.name: entry.reason for entry in source.left_out if entry.reason not in _CHOSEN}
    lost = {}
    for name, pin in sorted(pins.items()):
        original = source.original(name)
        if original is None or not is_copy_of(pin, original) or pin.sha256 in digests_now:
            continue
        size, reason = files.file_size(original), reasons.get(name, "")
        if size is None:
            lost[name] = f"{original} vanished"
        elif size < pin.size and (name in names or reason):
            lost[name] = f"{original} shrank from {pin.size:,} to {size:,} bytes"
        elif reason and not reason.startswith("same as "):
            lost[name] = f"{original} is left out now ({reason})"
    return lost


def is_lost(root: Path, reference: str, recipe: str) -> bool:
    """Return True if a file that was copied from the path `reference`, for it or for `recipe`, lost text since then."""
    path = os.path.abspath(reference)
    copies = [
        pin for pin in former_pins(root, (path, recipe_origin(recipe))) if f"{copied_path(pin)}/".startswith(f"{path}/")
    ]
    return any((files.file_size(Path(copied_path(pin))) or 0) < pin.size for pin in copies)


def lost_error(lost: Mapping[str, str]) -> UpstreamChanged:
    """Return the error for files that lost text: it names the first, and counts the others."""
    count = f", and {len(lost) - 1:,} more" if len(lost) > 1 else ""
    return UpstreamChanged(
        f"{next(iter(lost.values()))}{count}; the old copy is kept",
        hint="put it back, or accept the loss: run `refresh` or `download` once with --allow-shrink",
    )


def recorded_origin(local: Path) -> str:
    """Return the path, size and time of a local file, as a pin records them."""
    status = local.stat()
    return f"{os.path.abspath(local)}:{status.st_size}:{status.st_mtime_ns}"


def copy(
    file: SourceFile, local: Path, target: Path, size: int | None, network: Network, advance: Advance
) -> tuple[RawFile, Stamp]:
    """Copy a local file to `target`; return its pin, and the stamp of the original.

    The copy replaces an older one only if the original still has its `size` at planning, and did not change while it
    was copied. Raises TryAgain otherwise.
    """
    try:
        origin, stamp = recorded_origin(local), hashes.file_stamp(local)
        with files.new_file(target) as out:
            for block in _blocks(local, network):
                out.write(block)
                if out.size > stamp.size:  # a file that grows as fast as it is copied has no end
                    raise _changing(local)
                advance(len(block))
            digest = hashlib.sha256()
            for block in _blocks(local, network):
                digest.update(block)
            if digest.hexdigest() != out.sha256 or hashes.file_stamp(local) != stamp or size not in (None, out.size):
                raise _changing(local)
    except FileNotFoundError as error:
        if error.filename != str(local):
            raise
        raise _changing(local) from None
    mtime_ns = target.stat().st_mtime_ns
    return RawFile(out.size, out.sha256, mtime_ns, origin, file.split, members=file.members), stamp


def _blocks(path: Path, network: Network) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            network.raise_if_stopped(str(path))
            yield block


def _changing(local: Path) -> TryAgain:
    return TryAgain(
        f"{local}: the file changed while it was copied; the old copy is kept",
        hint="run the same command again when the file is complete",
    )
