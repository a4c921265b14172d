"""Drafts: folders in which artifacts are built, their run.json, and the replacement of a generation by a rebuilt one.

artifacts/<kind>/<name>/.draft-<key>/     artifact under construction, or left by an interrupted build
artifacts/<kind>/<name>/.replaced-<key>/  generation that is being replaced by a rebuilt one
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import TryAgain
from pipeline.store import files, locks
from pipeline.store.generations import RUN, generation_keys, read_run_info
from pipeline.store.manifest import Identity

_REPLACED = ".replaced-"


def prepare_draft(draft: Path, target: Path, identity: Identity, *, keep: bool, rebuild: bool) -> None:
    """Create the draft. With `keep`, it starts with the files of an earlier draft or of a damaged artifact.

    With `keep` and `rebuild`, it starts only with the files of an earlier draft that was a rebuild too.
    """
    if not keep or (rebuild and not read_run_info(draft).rebuild):
        files.remove_tree(draft)
    elif target.is_dir() and not rebuild and not draft.exists():
        files.publish_directory(target, draft)
    draft.mkdir(parents=True, exist_ok=True)
    files.remove_temporaries(draft)
    if keep:  # record the inputs, so that `prune` keeps what is needed to resume
        run = {
            "made_from": identity.inputs,
            "libraries": identity.versions(),
            "code": identity.code,
            "rebuild": rebuild,
        }
        files.write_file(draft / RUN, msgspec.json.encode(run))


def write_run(draft: Path, identity: Identity, start: float, run: Mapping[str, Any], *, promoted: bool) -> None:
    """Write the run.json of a finished draft; `start` is the time.monotonic() of its beginning."""
    earlier = generation_keys(draft.parent)
    content = {
        "seconds": round(time.monotonic() - start, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": platform.node(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "code": identity.code,
        **run,
        **({} if promoted else {"promoted": False}),
        "generation": 1 + max((read_run_info(draft.parent / key).generation for key in earlier), default=0),
    }
    files.write_file(draft / RUN, msgspec.json.format(msgspec.json.encode(_in_utf8(content)), indent=2))


def _in_utf8(value: Any) -> Any:
    """Return `value` with escapes for the bytes of paths that are not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_in_utf8(key): _in_utf8(entry) for key, entry in value.items()}
    return [_in_utf8(entry) for entry in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def without_readers(manifest: Path | None) -> Iterator[None]:
    """Prevent new leases on the published artifact with this manifest. Raises TryAgain if a reader has one already."""
    with locks.if_unleased(manifest) if manifest else nullcontext(True) as is_free:
        if not is_free:
            raise TryAgain(
                f"{manifest and manifest.parent}: cannot be replaced while it is read",
                hint="wait for its reader to end, then run the same command again",
            )
        yield


def replace_generation(draft: Path, target: Path) -> None:
    """Put a finished draft in the place of a published generation.

    This takes two renames, because a folder cannot replace another one. After a kill between them, `finish_killed`
    restores the old generation.
    """
    replaced = target.with_name(f"{_REPLACED}{target.name}")
    files.sync_tree(draft)
    files.move(target, replaced)
    try:
        files.move(draft, target)
    except BaseException:
        files.move(replaced, target)
        raise
    files.discard_folder(replaced)


def finish_killed(shelf: Path, scratch: str) -> None:
    """Clean up a shelf on which publishing was killed. The caller must hold the lock of the shelf.

    Deletes temporaries, restores a generation that was being replaced, and deletes the folder `scratch` of every
    published generation, current or not.
    """
    files.remove_temporaries(shelf, recursive=False)
    _restore_replaced(shelf)
    for folder in shelf.glob(f"[!.]*/{scratch}"):
        files.remove_tree(folder)


def _restore_replaced(shelf: Path) -> None:
    """Restore the generation that a killed `replace_generation` had moved away, or delete it if it was replaced."""
    for replaced in shelf.glob(f"{_REPLACED}*"):
        target = shelf / replaced.name.removeprefix(_REPLACED)
        if target.is_dir():
            files.discard_folder(replaced)
        else:
            files.move(replaced, target)
