"""Fixtures of the tests of tokens."""

from __future__ import annotations

import pytest

from tests.support.tokenizing import shrink_chunks


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks in a unit, and several units in a file."""
    shrink_chunks(monkeypatch, 600, 150)
