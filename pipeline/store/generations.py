"""A shelf: the folder of one name, with all generations of that artifact, and what can be said without opening them.

artifacts/<kind>/<name>/<key>/run.json    the number of the generation, and when it was finished
artifacts/<kind>/<name>/current           a link to the generation that readers get
artifacts/<kind>/<name>/rolled-back       keys that `current` shall not name by itself
artifacts/<kind>/<name>/.draft-<key>/     what is being made, or was left by a run that ended before its time
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from pipeline.errors import BadData
from pipeline.store.manifest import Identity, Input, check_name

RUN, ROLLED_BACK = "run.json", "rolled-back"
_KEY = re.compile(r"[0-9a-f]{16}")


class Run(msgspec.Struct, frozen=True):
    """What is read again of a run.json: the number of the generation on its shelf, and when it was finished.

    In a draft, where there is no manifest yet, `made_from` are the inputs of what is being made.
    """

    generation: int = 0
    finished: str = ""
    made_from: tuple[Input, ...] | None = None


def draft_path(root: Path, identity: Identity) -> Path:
    """Where the artifact is built: beside its target, under a name that no reader resolves."""
    return root / identity.kind / check_name(identity.name) / f".draft-{identity.key}"


def current_key(shelf: Path) -> str:
    """The key that `current` names, whether or not there is such a generation; "" where there is no `current`."""
    link = shelf / "current"
    return Path(os.readlink(link)).name if link.is_symlink() else ""


def generation_keys(shelf: Path) -> list[str]:
    """Keys of the generations on a shelf, damaged ones too, in the order in which they were published.

    The order is that of their numbers in run.json: unlike times, those stay right when the clock jumps and when the
    store is copied. One whose run.json is gone counts as the oldest.
    """
    names = os.listdir(shelf) if shelf.is_dir() else []
    found = [shelf / name for name in names if _KEY.fullmatch(name) and (shelf / name).is_dir()]
    return [path.name for path in sorted(found, key=_published_as)]


def _published_as(folder: Path) -> tuple[int, str, str]:
    run = run_of(folder)
    return run.generation, run.finished, folder.name


def run_of(folder: Path) -> Run:
    """What the run.json of a generation or of a draft says; nothing where there is none."""
    try:
        return msgspec.json.decode((folder / RUN).read_bytes(), type=Run)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # it decides no bytes: it may be lost
        return Run()


def rolled_back(shelf: Path) -> tuple[str, ...]:
    """Keys of the generations that `current` was taken back from, and that it shall not name again by itself."""
    path = shelf / ROLLED_BACK
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[str, ...])
    except FileNotFoundError:
        return ()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path}: no list of keys: {error}", hint="delete it, then `rollback` again") from None


def is_rolled_back(root: Path, identity: Identity) -> bool:
    """Whether the generation of this identity was published and then rolled back: `build` refuses it."""
    return identity.key in rolled_back(root / identity.kind / check_name(identity.name))
