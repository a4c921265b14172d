"""What the tests of refreshes and of the store share: a hub with six shards, and a recipe that takes them from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.upstream import Hub, Nightly, fill, nightly, serving


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as found:
        fill(found)
        yield found


@pytest.fixture
def job(tmp_path: Path, hub: Hub) -> Nightly:
    return nightly(tmp_path, hub)
