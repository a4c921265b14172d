from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import zstandard


@pytest.fixture(scope="module")
def bodies(shared: Path) -> list[str]:
    """Poems without their titles."""
    with zstandard.open(shared / "data/tang_poems.jsonl.zst", "rb") as file:
        return [json.loads(line)["text"].split("\n", 1)[-1] for line in io.TextIOWrapper(file, encoding="utf-8")]
