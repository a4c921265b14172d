"""Documents: citations and links resolve, the CLI reference is fresh, hints name our own distribution."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = [
    ROOT / "cli.py",
    *(path for folder in ("pipeline", "model", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")),
]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
CITATION = re.compile(r"docs/design/(\w+\.md)`?(?:,)?(?: section)? ?(M\d+|\d(?:\.\d)?)?")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
WRONG_DISTRIBUTION = re.compile(r"\binkstone\[")


def citations(text: str) -> list[tuple[str, str]]:
    """(file, section) of every citation of a design document; section is "" without one."""
    return [(match[1], match[2] or "") for match in CITATION.finditer(text)]


def resolves(file: str, section: str) -> bool:
    path = ROOT / "docs" / "design" / file
    if not path.is_file():
        return False
    if section.startswith("M"):
        return f"| {section} |" in path.read_text(encoding="utf-8")
    heading = re.compile(rf"^#+ {re.escape(section)}\b", re.MULTILINE)
    return not section or bool(heading.search(path.read_text(encoding="utf-8")))


def test_every_citation_resolves() -> None:
    cited = [
        (path, *citation) for path in (*CODE, *DOCUMENTS) for citation in citations(path.read_text(encoding="utf-8"))
    ]
    assert cited
    assert not [entry for entry in cited if not resolves(*entry[1:])]


def test_nothing_outside_the_repository_is_cited() -> None:
    outside = re.compile(r"(?<!docs/design/)\b(reference/[a-z-]+\.md|DESIGN\.md)")
    assert not [
        path
        for path in (*CODE, *DOCUMENTS)
        if path.name != "test_docs.py" and outside.search(path.read_text(encoding="utf-8"))
    ]


def test_lines_that_the_examples_of_contributing_replace_are_in_the_code() -> None:
    blocks = re.findall(r"^```diff\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)
    changes = [change.splitlines() for block in blocks for change in re.split(r"^--- ", block, flags=re.M)[1:]]
    replaced = [(name, line[1:]) for name, *lines in changes for line in lines if line.startswith("-")]
    assert len(replaced) > 3
    assert not [entry for entry in replaced if entry[1] not in (ROOT / entry[0]).read_text("utf-8").splitlines()]


def test_a_citation_that_does_not_resolve_is_seen() -> None:
    assert citations("see docs/design/cleaning.md 4.2 for why") == [("cleaning.md", "4.2")]
    assert not resolves("cleaning.md", "9.9")
    assert not resolves("missing.md", "")


def test_every_relative_link_resolves() -> None:
    links = [(path, link) for path in DOCUMENTS for link in LINK.findall(path.read_text(encoding="utf-8"))]
    assert links
    assert not [(path, link) for path, link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize(
    ("page", "script"),
    [
        ("cli-reference.md", "cli_reference"),
        ("refresh-and-cron.md", "recipe_reference"),
        ("training.md", "settings_reference"),
    ],
)
def test_generated_pages_are_fresh(page: str, script: str) -> None:
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    assert spec
    assert spec.loader
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == reference.render(), "run `make docs`"


def test_hints_name_our_own_distribution() -> None:
    """`inkstone` on the package index is another project; ours is inkstone-gpt."""
    files = [path for path in (*CODE, *DOCUMENTS) if path.name != "test_docs.py"]
    assert not [path for path in files if WRONG_DISTRIBUTION.search(path.read_text(encoding="utf-8"))]


def test_a_wrong_hint_is_seen() -> None:
    assert WRONG_DISTRIBUTION.search("pip install 'inkstone[serve]'")
    assert not WRONG_DISTRIBUTION.search("pip install 'inkstone-gpt[serve]'")


def test_the_python_examples_run_in_order(tmp_path: Path) -> None:
    """The blocks of docs/python-api.md, as one script in an empty folder with one novel."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) >= 6
    shutil.copy(ROOT / "pipeline" / "sample" / "yanshan.txt", tmp_path / "novel.txt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("INKSTONE_ARTIFACTS", None)
    command = [sys.executable, "-c", "\n".join(blocks)]
    process = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "artifacts" / "runs" / "novel" / "current").exists()


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_is_short(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 150
