"""Fixtures of the store tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_descriptor_stays_open() -> Iterator[None]:
    """Compare the open file descriptors before and after a test. Those of earlier tests may be closed meanwhile."""
    before = {*os.listdir("/dev/fd")}
    yield
    assert {*os.listdir("/dev/fd")} <= before
