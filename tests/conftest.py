"""Fixtures of all tests: the folder of real texts, an empty store, and the command line."""

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

# OpenMP threads that spin while waiting make two trainings on two cores many times slower. PASSIVE lets them sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if SHARED.is_dir():  # it has tiktoken's rank files, so that no test needs the network
    os.environ["TIKTOKEN_CACHE_DIR"] = str(SHARED / "tiktoken")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real texts and rank files. Tests that need it are skipped if it is missing."""
    if not SHARED.is_dir():
        assert not os.environ.get("INKSTONE_REQUIRE_SHARED"), f"the shared texts are required, but {SHARED} is missing"
        pytest.skip(f"no folder of shared texts at {SHARED} (INKSTONE_SHARED)")
    return SHARED


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the path of an artifacts folder that does not exist yet."""
    return tmp_path / "artifacts"


Inkstone = Callable[..., dict[str, Any]]


@pytest.fixture
def inkstone(root: Path) -> Inkstone:
    """Run a command in a process of its own with --json, and return the JSON object that it prints.

    `stderr` and `code` are added to the object. The command must exit with `code`, by default 0.
    """

    def run(*arguments: object, code: int = 0, cwd: Path = ROOT) -> dict[str, Any]:
        command = [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "--json", *map(str, arguments)]
        process = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)
        assert process.returncode == code, f"{arguments} exited {process.returncode}, not {code}:\n{process.stderr}"
        output = json.loads(process.stdout)
        assert isinstance(output, dict)
        return {**output, "stderr": process.stderr, "code": process.returncode}

    return run
