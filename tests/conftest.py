"""What all tests share: the real texts beside the project, a store of their own, and the command line in process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("INKSTONE_SHARED") or ROOT.parent / "shared").resolve()

# Threads that spin while they wait make two trainings on two cores many times slower; these wait asleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if SHARED.is_dir():  # tiktoken's rank files, so that no test needs the network
    os.environ["TIKTOKEN_CACHE_DIR"] = str(SHARED / "tiktoken")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real texts and rank files. Tests that need it are skipped where it is not."""
    if not SHARED.is_dir():
        assert not os.environ.get("INKSTONE_REQUIRE_SHARED"), f"the shared texts are required, and not at {SHARED}"
        pytest.skip(f"no folder of shared texts at {SHARED} (INKSTONE_SHARED)")
    return SHARED


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty artifacts folder."""
    return tmp_path / "artifacts"


Inkstone = Callable[..., dict[str, Any]]


@pytest.fixture
def inkstone(root: Path) -> Inkstone:
    """Run a command as a person would, in a process of its own, with --json; returns the one object it prints.

    The object gains `stderr` and `code`. Without `code=` the command must succeed.
    """

    def run(*arguments: object, code: int = 0, cwd: Path = ROOT) -> dict[str, Any]:
        command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "--json", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)
        assert done.returncode == code, f"{arguments} exited {done.returncode}, not {code}:\n{done.stderr}"
        printed = json.loads(done.stdout)
        assert isinstance(printed, dict)
        return {**printed, "stderr": done.stderr, "code": done.returncode}

    return run
