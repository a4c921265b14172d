"""The wheel installs `cli`, `model` and `pipeline` with their data, and nothing else at top level."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "cli.py", "model", "pipeline", "benchmarks", "tests")


def top_level(names: list[str]) -> set[str]:
    """Return the top-level names that a wheel would install, without its metadata."""
    tops = {name.split("/")[0] for name in names}
    return {name for name in tops if not name.endswith(".dist-info")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in the wheel, built from a copy of the checkout without network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignore) if source.is_dir() else shutil.copy(source, target)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    process = subprocess.run([*command, str(folder / "source")], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    (path,) = folder.glob("inkstone_gpt-*.whl")
    return zipfile.ZipFile(path).namelist()


def test_top_level_of_the_wheel(wheel: list[str]) -> None:
    assert top_level(wheel) == {"cli.py", "model", "pipeline"}


def test_the_wheel_has_its_data(wheel: list[str]) -> None:
    expected = {
        "pipeline/recipes/sample.toml",
        "pipeline/sample/conversations.jsonl",
        "pipeline/sample/preferences.jsonl",
        "pipeline/sample/yanshan.txt",
        "pipeline/py.typed",
        "pipeline/store/released.json",
        "model/py.typed",
        "model/serving/page/page.html",
        "model/serving/page/write.js",
    }
    assert expected <= set(wheel)


def test_a_planted_package_is_seen() -> None:
    assert top_level(["cli.py", "recipes/sample.toml", "inkstone_gpt-1.dist-info/METADATA"]) == {"cli.py", "recipes"}
