"""Fixtures of refresh and store tests: a hub with six shards, and a recipe that downloads from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.upstream import Hub, Nightly, fill, nightly, serving


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as server:
        fill(server)
        yield server


@pytest.fixture
def job(tmp_path: Path, hub: Hub) -> Nightly:
    return nightly(tmp_path, hub)
