"""The offline commands of the README and the documents, executed as they are written; links and dependencies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
DOCUMENTS = [*READMES, *sorted((ROOT / "docs").glob("*.md"))]
OFFLINE = re.compile(r"<!-- offline -->\n```sh\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^ *inkstone ([a-z-]+)", re.MULTILINE)


def offline_blocks(path: Path) -> list[str]:
    return OFFLINE.findall(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_offline_mark_begins_a_block(path: Path) -> None:
    marks = re.findall(r"^<!-- offline -->$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(offline_blocks(path)) == len(marks)


@pytest.mark.parametrize("path", READMES, ids=name)
def test_there_are_offline_commands(path: Path) -> None:
    assert offline_blocks(path)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if offline_blocks(path)], ids=name)
def test_the_offline_commands_run_as_written(path: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "INKSTONE_ARTIFACTS": str(tmp_path / "artifacts"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "TIKTOKEN_CACHE_DIR": str(tmp_path),
    }
    for block in offline_blocks(path):
        done = subprocess.run(
            ["bash", "-euc", block], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"


def test_both_readmes_have_the_same_commands() -> None:
    english, chinese = (offline_blocks(path) for path in READMES)
    assert english == chinese


def test_both_pages_on_chinese_text_have_the_same_parts() -> None:
    def parts(page: str) -> tuple[list[str], list[str], list[str], set[str]]:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        code = [re.sub("  +#.*", "", block) for block in re.findall(r"^```.*?^```", text, re.DOTALL | re.MULTILINE)]
        rows = [line for line in text.splitlines() if line.startswith("|")]
        first_codes = [found[1] for row in rows if (found := re.match(r"\| `([^`]+)`", row))]
        return re.findall("^#+", text, re.MULTILINE), code, first_codes, set(re.findall("--[a-z][a-z-]+", text))

    assert parts("chinese.md") == parts("chinese.zh.md")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_command_of_the_documents_exists(path: Path) -> None:
    import cli

    commands = set(COMMAND.findall(path.read_text(encoding="utf-8")))
    assert commands <= cli.cli.commands.keys()


def test_every_dependency_has_a_reason_a_range_and_a_pin() -> None:
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    required = re.search(r"install_requires =\n(.*?)\n\n", setup, re.DOTALL)
    assert required
    design = (ROOT / "docs" / "design" / "design.md").read_text(encoding="utf-8")
    reasons = re.search(r"^## 6\. Dependencies\n(.*?)^## ", design, re.DOTALL | re.MULTILINE)
    assert reasons
    packages = set(re.findall(r"[a-z0-9-]+", " ".join(re.findall(r"^\| ([^|]+) \|", reasons[1], re.MULTILINE))))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for dependency in re.findall(r"^ +([a-z0-9-]+)", required[1], re.MULTILINE):
        assert dependency in packages, f"{dependency} has no reason in docs/design/design.md, section 6"
        assert re.search(rf"(?mi)^{dependency.replace('-', '[-_]')}==", pins), f"{dependency} has no pin"
