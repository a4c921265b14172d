"""Verify published artifacts, raw files and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from pipeline.errors import InkstoneError
from pipeline.report import page, reports
from pipeline.runtime.progress import Progress
from pipeline.runtime.regular_file import not_regular, read_regular
from pipeline.sources import cache
from pipeline.store import artifact
from pipeline.store.generations import RUN


def verify(
    root: Path, reference: str = "", *, deep: bool = False, progress: Progress | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, problems) for every raw source, generation and report, or for those that `reference` names.

    A reference is a name of any kind (`shuihu`), a kind, a kind and a name, all of that with a key, or the path of an
    artifact. With `deep` every byte is hashed. Raises InputMissing if nothing has that name, OSError for a folder that
    may not be read.
    """
    target = reference.removesuffix("/").removeprefix("raw/")
    any_found, progress = False, progress or Progress()
    for ref, check in _checks(root, deep):
        kind, name, *_ = ref.split("/")
        if not reference or target in (ref, name, f"{kind}/{name}", kind):
            any_found = True
            with progress.wait(f"checking {ref}"):
                problems = check()
            yield ref, problems
    if any_found or not reference:
        return
    external = artifact.read(Path(reference))
    yield external.ref, artifact.find_problems(external, deep=deep)


def _checks(root: Path, deep: bool) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Yield the name of each raw source, generation and report with the function that checks it."""
    raw = root / "raw"
    for folder in sorted(path for path in raw.iterdir() if path.is_dir()) if raw.is_dir() else ():
        yield f"raw/{folder.name}", partial(_problems, partial(_source_problems, root, folder, deep=deep))
    for path in artifact.generations(root):
        yield path.relative_to(root).as_posix(), partial(_problems, partial(_artifact_problems, path, deep))
    for path in reports.paths(root):
        yield path.relative_to(root).as_posix(), partial(_problems, partial(_report_problems, path))


def _problems(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except InkstoneError as error:  # a torn manifest or lock file is a problem to report
        return [error.message]


def _report_problems(path: Path) -> list[str]:
    intact = page.is_intact(read_regular(path))
    return [] if intact else [f"{path}: not the report that was written; `report` or `refresh` writes it again"]


def _artifact_problems(path: Path, deep: bool) -> list[str]:
    problems = artifact.find_problems(artifact.read(path), deep=deep)
    if (run_info := path / RUN).exists() and not run_info.is_file():
        problems.append(not_regular(run_info).message)
    return problems


def _source_problems(root: Path, folder: Path, *, deep: bool) -> list[str]:
    problems = []
    for name, pin in sorted(cache.read_lock_file(root, folder.name).items()):
        expected = msgspec.structs.replace(pin, mtime_ns=-1) if deep else pin  # an unknown time forces a hash
        if not cache.is_intact(folder / name, expected):
            problems.append(f"{folder / name}: not the file that was downloaded")
    return problems
