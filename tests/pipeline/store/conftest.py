"""Fixtures of the store tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_descriptor_stays_open() -> Iterator[None]:
    """Compare the number of open file descriptors before and after a test."""
    before = len(os.listdir("/dev/fd"))
    yield
    assert len(os.listdir("/dev/fd")) == before
