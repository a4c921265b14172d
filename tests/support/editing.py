"""A copy of the source files that tests may edit, in the place of those that keys are computed from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.store import code
from pipeline.store.code import Released
from tests.conftest import ROOT
from tests.support.digests import source_digests


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with copies of `pipeline` and `model`, which count as released. Call `reread` after an edit."""
    folder = tmp_path / "sources"
    for package in ("pipeline", "model"):
        ignored = shutil.ignore_patterns("__pycache__", "sample")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    monkeypatch.setattr(code, "PACKAGES", folder)
    reread()
    released = Released({}, {}, source_digests())
    monkeypatch.setattr(code, "read_released", lambda: released)
    yield folder
    reread()


def reread() -> None:
    """Forget the digests of source files, as a new process does."""
    code.digest_of.cache_clear()
    code.state_of.cache_clear()


def edit(path: Path, text: str = "# edited\n") -> None:
    """Append a line to a source file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
    reread()
