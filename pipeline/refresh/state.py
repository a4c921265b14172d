"""Record of a recipe's refreshes: `artifacts/.state/<recipe>.json`, beside the recipe's lock.

People and monitors read from it the last success, the result of the last refresh, and the time each stage took. No
stage depends on it: a lost record is rebuilt from the manifests, as far as they go.
"""

from __future__ import annotations

import calendar
import time
from pathlib import Path

import msgspec

from pipeline.errors import BadData
from pipeline.runtime.regular_file import read_regular
from pipeline.store import files
from pipeline.store.generations import generation_keys, read_run_info
from pipeline.store.manifest import KINDS

FOLDER = ".state"
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_CLOCK_TOLERANCE = 300  # seconds


class StageTiming(msgspec.Struct, frozen=True):
    """Seconds that a stage took for `bytes` bytes of raw files, and the number of bytes that it wrote (`made`)."""

    seconds: float
    bytes: int
    made: int


class RefreshState(msgspec.Struct, frozen=True):
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
    paces: dict[str, StageTiming] = {}


def path_of(root: Path, recipe: str) -> Path:
    return root / FOLDER / f"{recipe}.json"


def lock_of(root: Path, recipe: str) -> Path:
    return root / FOLDER / f"{recipe}.lock"


def read(root: Path, recipe: str) -> RefreshState:
    """Return the record of a recipe. If it is missing or unreadable, derive one from the newest artifacts."""
    try:
        return msgspec.json.decode(read_regular(path_of(root, recipe)), type=RefreshState)
    except (OSError, BadData, msgspec.DecodeError, UnicodeDecodeError):
        return RefreshState(recipe, last_success=_last_built(root, recipe))


def write(root: Path, state: RefreshState) -> None:
    path = path_of(root, state.recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_file(path, msgspec.json.format(msgspec.json.encode(state), indent=2))


def recipe_names(root: Path) -> list[str]:
    """Return the names of all recipes that were ever refreshed here."""
    return sorted(path.stem for path in (root / FOLDER).glob("*.json"))


def now() -> str:
    return time.strftime(_TIME_FORMAT, time.gmtime())


def age_hours(timestamp: str) -> float | None:
    """Return the hours since a timestamp made by `now`, at least 0; None for "" or an invalid one."""
    seconds = _seconds_since(timestamp)
    return None if seconds is None else max(0.0, seconds) / 3600


def is_in_future(timestamp: str) -> bool:
    """Return True if a timestamp is ahead of the clock by more than clocks of two machines may differ."""
    return (_seconds_since(timestamp) or 0.0) < -_CLOCK_TOLERANCE


def _seconds_since(timestamp: str) -> float | None:
    try:
        return time.time() - calendar.timegm(time.strptime(timestamp, _TIME_FORMAT))
    except ValueError:
        return None


def _last_built(root: Path, recipe: str) -> str:
    """Return the time at which the newest artifact of this name was finished, by a refresh or by a single command."""
    folders = [root / kind / recipe for kind in KINDS]
    return max(
        (read_run_info(folder / key).finished for folder in folders for key in generation_keys(folder)), default=""
    )
