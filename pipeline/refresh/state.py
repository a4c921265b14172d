"""What is remembered of the refreshes of a recipe: `artifacts/.state/<recipe>.json`, beside their lock.

It says for people and for monitors when one last succeeded, how the last one ended, and how long each stage took. No
stage depends on it: one that is lost is made again from the manifests, as far as they know.
"""

from __future__ import annotations

import calendar
import time
from pathlib import Path

import msgspec

from pipeline.store import files
from pipeline.store.generations import generation_keys, run_of
from pipeline.store.manifest import KINDS

FOLDER = ".state"
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Pace(msgspec.Struct, frozen=True):
    """How long a stage took for how many bytes of raw files, and how many bytes it made of them."""

    seconds: float
    bytes: int
    made: int


class State(msgspec.Struct, frozen=True):
    """Times are UTC in ISO 8601, "" for never. `result` is "running", "built", "unchanged" or "failed"."""

    recipe: str
    run_id: str = ""
    pid: int = 0
    started: str = ""
    ended: str = ""
    stage: str = ""
    result: str = ""
    exit_code: int = 0
    error: str = ""
    hint: str = ""
    last_success: str = ""
    paces: dict[str, Pace] = {}


def path_of(root: Path, recipe: str) -> Path:
    return root / FOLDER / f"{recipe}.json"


def lock_of(root: Path, recipe: str) -> Path:
    return root / FOLDER / f"{recipe}.lock"


def read(root: Path, recipe: str) -> State:
    """What is remembered; where nothing is, or it cannot be read, what the newest artifacts of the recipe say."""
    try:
        return msgspec.json.decode(path_of(root, recipe).read_bytes(), type=State)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return State(recipe, last_success=_last_built(root, recipe))


def write(root: Path, state: State) -> None:
    path = path_of(root, state.recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_file(path, msgspec.json.format(msgspec.json.encode(state), indent=2))


def names(root: Path) -> list[str]:
    """Recipes that were ever refreshed here."""
    return sorted(path.stem for path in (root / FOLDER).glob("*.json"))


def now() -> str:
    return time.strftime(_TIME, time.gmtime())


def age_hours(moment: str) -> float | None:
    """Hours since a moment that `now` gave; None for never."""
    try:
        return max(0.0, time.time() - _seconds(moment)) / 3600
    except ValueError:
        return None


def _seconds(moment: str) -> float:
    return calendar.timegm(time.strptime(moment, _TIME))


def _last_built(root: Path, recipe: str) -> str:
    """When the newest artifact of this name was finished: a refresh did that, or the person's own command."""
    shelves = [root / kind / recipe for kind in KINDS]
    return max((run_of(shelf / key).finished for shelf in shelves for key in generation_keys(shelf)), default="")
