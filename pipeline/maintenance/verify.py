"""Verify published artifacts and raw files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from pipeline.errors import InkstoneError
from pipeline.sources import cache
from pipeline.store import artifact


def verify(root: Path, reference: str = "", *, deep: bool = False) -> Iterator[tuple[str, list[str]]]:
    """(name, what is wrong) of every raw source and every generation, or of those that `reference` names.

    A reference is a name (`shuihu`, of whatever kind), a kind and a name, both and a key, or the path of an artifact.
    """
    wanted = reference.removesuffix("/").removeprefix("raw/")
    any_found = False
    for name, check in _everything(root, deep):
        kind, own, *_ = name.split("/")
        if not reference or wanted in (name, own, f"{kind}/{own}", kind):
            any_found = True
            yield name, check()
    if reference and not any_found:
        found = artifact.read(Path(reference))
        yield found.ref, artifact.problems(found, deep=deep)


def _everything(root: Path, deep: bool) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The name of each raw source and each generation, with the function that checks it."""
    for folder in sorted(path for path in (root / "raw").glob("*") if path.is_dir()):
        yield f"raw/{folder.name}", partial(_problems, partial(_raw_problems, root, folder, deep=deep))
    for path in artifact.generations(root):
        yield path.relative_to(root).as_posix(), partial(_problems, partial(_artifact_problems, path, deep))


def _problems(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except InkstoneError as error:  # torn manifests and lock files are what verify looks for
        return [error.what]


def _artifact_problems(path: Path, deep: bool) -> list[str]:
    return artifact.problems(artifact.read(path), deep=deep)


def _raw_problems(root: Path, folder: Path, *, deep: bool) -> list[str]:
    found = []
    for name, pin in sorted(cache.read_lock(root, folder.name).items()):
        checked = msgspec.structs.replace(pin, mtime_ns=-1) if deep else pin
        if not cache.is_whole(folder / name, checked):
            found.append(f"{folder / name}: not the file that was downloaded")
    return found
