"""A store with a novel, and with documents that try to become markup, for all tests of reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cli
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from tests.conftest import ROOT

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</svg></td></table><img src=x onerror=\"document.title='owned'\">",
    "{{7*7}} {% for a in b %} ${7*7} <!-- --> ]]>",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \u202ereversed\u202c \u2028",
    '"><a href="javascript:alert(1)">link</a> & &amp; &lt;',
)


def run(root: Path, *arguments: object) -> None:
    assert cli.main(["--artifacts", str(root), "-q", *map(str, arguments)]) == 0, arguments


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with the corpora and tokens `novel` and `hostile`."""
    folder = tmp_path_factory.mktemp("report")
    root = folder / "artifacts"
    novel = ROOT / "pipeline" / "sample" / "yanshan.txt"
    run(root, "clean", novel, "--name", "novel", "--boilerplate", "chapter-ends")
    hostile = folder / "<b>hostile & {{1}}.jsonl"
    documents = [{"text": text, "title": text} for text in HOSTILE]  # too short
    documents += [{"text": f"{number} {text}\n" * 9, "title": text} for number in range(30) for text in HOSTILE]
    documents.append({"text": "x<b>" * 250_000})
    hostile.write_text("".join(f"{json.dumps(entry)}\n" for entry in documents) + "{broken <i>\n", encoding="utf-8")
    run(root, "clean", hostile, "--name", "hostile", "--min-chars", 100, "--max-bad", 1)
    run(root, "train-tokenizer", "novel", "--kind", "bbpe", "--vocab-size", 600)
    for name in ("novel", "hostile"):
        run(root, "tokenize", name, "--tokenizer", "novel", "--jobs", 1)
    return root


def read(root: Path, kind: str, name: str) -> Artifact:
    found_artifact = artifact.current(root, kind, name)
    assert found_artifact
    return found_artifact
