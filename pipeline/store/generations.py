"""Generations of one artifact name: their order, the current one, and rolled-back ones, without reading manifests.

    artifacts/<kind>/<name>/<key>/run.json    number of the generation, and when it was finished
    artifacts/<kind>/<name>/current           link to the generation that readers get
    artifacts/<kind>/<name>/rolled-back       keys that `build` must not make current again
    artifacts/<kind>/<name>/.draft-<key>/     artifact under construction, or left by an interrupted build

The folder `artifacts/<kind>/<name>` is called a shelf.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import BadConfig, BadData
from pipeline.runtime.regular_file import not_regular, read_regular
from pipeline.store import files
from pipeline.store.code import AS_RELEASED, CodeState
from pipeline.store.manifest import KINDS, Count, Identity, Input, check_name, is_key

RUN, ROLLED_BACK = "run.json", "rolled-back"
# errors of symlink on file systems without links, such as FAT (EPERM) and some network mounts
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class RunInfo(msgspec.Struct, frozen=True):
    """The fields of run.json that are read back: number of the generation, when it was finished, and its code.

    `inputs` lists the paths of the files that were read, `settings` the options that decide no bytes and the paths of
    tables. `promoted` is False if the generation was published without becoming current, for the `reason` given. In a
    draft, which has no manifest yet, `made_from` lists the inputs and `libraries` the versions that its key depends on;
    `rebuild` is true if the same key is published.
    """

    generation: Count = 0
    finished: str = ""
    inputs: tuple[str, ...] = ()
    settings: dict[str, Any] = {}
    promoted: bool = True
    reason: str = ""
    made_from: tuple[Input, ...] | None = None
    libraries: dict[str, str] = {}
    code: CodeState = AS_RELEASED
    rebuild: bool = False


def draft_path(root: Path, identity: Identity) -> Path:
    """Return the folder where the artifact is built: beside its target, under a name that readers ignore."""
    return root / identity.kind / check_name(identity.name) / f".draft-{identity.key}"


def current_key(shelf: Path) -> str:
    """Return the key that `current` links to, even if that generation is gone; "" if there is no `current`.

    Raises BadConfig if `current` is a file with a key: the folder is a bucket. Raises BadData if it is anything else.
    """
    link = shelf / "current"
    if link.is_symlink():
        return Path(os.readlink(link)).name
    if os.path.lexists(link):
        if link.is_file() and is_key(link.read_bytes()[:64].decode("ascii", "replace").strip()):
            url = shelf.parent.parent.absolute().as_uri()
            raise BadConfig(f"{shelf.parent.parent}: a bucket, made by `push`", hint=f"--artifacts {url}")
        raise not_regular(link, "a link to a generation")
    return ""


def require_links(shelf: Path) -> None:
    """Before a build, raise BadConfig if the file system has no symbolic links, BadData if `current` is not one."""
    if current_key(shelf):
        return
    link = files.temporary_path(shelf / "current")
    try:
        files.disk.symlink("a-test", link)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise BadConfig(
            f"{shelf}: this file system has no symbolic links: {(error.strerror or str(error)).lower()}",
            hint="choose a folder on a local disk with --artifacts; `doctor` checks one",
        ) from None
    files.disk.unlink(link)


def set_current(shelf: Path, key: str) -> None:
    """Swap `current` to the generation `key`, atomically and durably: a reader sees the old link or the new one."""
    files.point_symlink(shelf / "current", key)


def shelves(root: Path) -> Iterator[Path]:
    """Yield the shelves below `root`, sorted by kind and name. Raises OSError for a folder that may not be read."""
    for kind in KINDS:
        if (root / kind).is_dir():
            yield from (path for path in sorted((root / kind).iterdir()) if path.is_dir())


def generation_keys(shelf: Path) -> list[str]:
    """Return the keys of the generations on a shelf, damaged ones too, in order of publication.

    The order is that of their numbers in run.json: unlike times, these stay right when the clock jumps and when the
    store is copied. A generation without a run.json counts as the oldest.
    """
    names = os.listdir(shelf) if shelf.is_dir() else []
    folders = [shelf / name for name in names if is_key(name) and (shelf / name).is_dir()]
    return [folder.name for folder in sorted(folders, key=_publication_order)]


def _publication_order(folder: Path) -> tuple[int, str, str]:
    run = read_run_info(folder)
    return run.generation, run.finished, folder.name


def names_newest_first(root: Path, kind: str) -> list[str]:
    """Return the names of the artifacts of a kind that have a current generation, the last published one first.

    The time is that of the current generation in its run.json: unlike that of the link, it stays right after a
    rollback and when the store is copied. Within one second the time of the folder decides.
    """

    def publication(link: Path) -> tuple[str, int]:
        folder = link.resolve()
        return read_run_info(folder).finished, folder.stat().st_mtime_ns

    links = [link for link in (root / kind).glob("*/current") if link.exists()]
    return [link.parent.name for link in sorted(links, key=publication, reverse=True)]


def read_run_info(folder: Path) -> RunInfo:
    """Read the run.json of a generation or a draft; an empty RunInfo if it is missing or torn."""
    try:
        return msgspec.json.decode(read_regular(folder / RUN), type=RunInfo)
    except (OSError, BadData, msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # it decides no bytes
        return RunInfo()


def promote(folder: Path) -> None:
    """Record in run.json that a generation may become current, although it was published without becoming current."""
    set_aside(folder, "")


def set_aside(folder: Path, reason: str) -> None:
    """Record in run.json the reason why a generation must not become current; with "", it may become current."""
    run = read_run_info(folder)
    if (run.promoted, run.reason) != (not reason, reason):
        content: dict[str, Any] = {}
        with suppress(FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            content = msgspec.json.decode(read_regular(folder / RUN))
        data = msgspec.json.encode({**content, "promoted": not reason, "reason": reason})
        files.write_file(folder / RUN, msgspec.json.format(data, indent=2))


def make_current(folder: Path, *, accept: bool) -> None:
    """Make the generation in `folder` current, if run.json allows it. `accept` makes run.json allow it."""
    if accept:
        promote(folder)
    if read_run_info(folder).promoted and current_key(folder.parent) != folder.name:
        set_current(folder.parent, folder.name)


def unfinished_drafts(root: Path, kind: str, name: str) -> Iterator[tuple[Path, tuple[Input, ...]]]:
    """Yield the drafts of that name that a later build can resume, each with its inputs."""
    for draft in sorted((root / kind / check_name(name)).glob(".draft-*")):
        if (made_from := read_run_info(draft).made_from) is not None:
            yield draft, made_from


def unwanted_keys(shelf: Path) -> set[str]:
    """Return the keys that become current only on request: rolled back, or published without becoming current."""
    unpromoted = {key for key in generation_keys(shelf) if not read_run_info(shelf / key).promoted}
    return unpromoted | {*rolled_back_keys(shelf)}


def rolled_back_keys(shelf: Path) -> tuple[str, ...]:
    """Return the keys of the generations that were rolled back, and that `build` must not make current again."""
    path = shelf / ROLLED_BACK
    try:
        return msgspec.json.decode(read_regular(path), type=tuple[str, ...])
    except FileNotFoundError:
        return ()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path}: not a list of keys: {error}", hint="delete it, then `rollback` again") from None


def is_rolled_back(root: Path, identity: Identity) -> bool:
    """Return True if the generation of this identity was rolled back, so that `build` refuses it."""
    return identity.key in rolled_back_keys(root / identity.kind / check_name(identity.name))
