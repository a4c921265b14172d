"""README: its offline commands run as written, and its commands, links and dependencies exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OFFLINE = re.findall(r"<!-- offline -->\n```sh\n(.*?)```", README, re.DOTALL)


def test_readme_has_offline_commands() -> None:
    assert len(OFFLINE) >= 2


def test_offline_commands_run_as_written(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "INKSTONE_ARTIFACTS": str(tmp_path / "artifacts"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "TIKTOKEN_CACHE_DIR": str(tmp_path),
    }
    for block in OFFLINE:
        process = subprocess.run(
            ["bash", "-euc", block], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert process.returncode == 0, f"{block}\n{process.stderr[-2000:]}"


def test_every_file_linked_from_the_readme_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^inkstone ([a-z-]+)", README, re.MULTILINE))))
def test_every_command_in_the_readme_exists(command: str) -> None:
    import cli

    assert command in cli.cli.commands


def test_every_dependency_has_a_reason_a_range_and_a_pin() -> None:
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    required = re.search(r"install_requires =\n(.*?)\n\n", setup, re.DOTALL)
    assert required
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name in re.findall(r"^ +([a-z0-9-]+)", required[1], re.MULTILINE):
        assert f"| {name}" in README or f", {name}" in README, f"{name} has no reason in the README"
        assert re.search(rf"(?mi)^{name.replace('-', '[-_]')}==", pins), f"{name} has no pin"
