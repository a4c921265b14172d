"""The tasks of docs/lm_eval, without lm_eval itself: documents and cloze questions of a corpus."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "pipeline" / "sample"


@pytest.fixture(scope="module")
def tasks() -> Any:
    spec = importlib.util.spec_from_file_location("inkstone_tasks", ROOT / "docs" / "lm_eval" / "inkstone_tasks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_are_read_from_plain_and_compressed_lines(tasks: Any, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": text, "title": ""}) + "\n" for text in ("一\n二", "three\u2028four"))
    (tmp_path / "plain.jsonl").write_text(lines, encoding="utf-8")
    frames = [zstandard.compress(line.encode()) for line in lines.splitlines(keepends=True)]
    (tmp_path / "frames.jsonl.zst").write_bytes(b"".join(frames))
    for name in ("plain.jsonl", "frames.jsonl.zst"):
        assert list(tasks.read_texts(tmp_path / name)) == ["一\n二", "three\u2028four"]


@pytest.mark.parametrize("text", ["yanshan.txt", "sample.jsonl.zst"])
def test_the_right_choice_continues_the_context_and_the_wrong_ones_are_as_long(tasks: Any, text: str) -> None:
    path = SAMPLES / text
    texts = list(tasks.read_texts(path)) if path.suffix == ".zst" else [path.read_text(encoding="utf-8")]
    questions = tasks.ask(texts, 200)
    assert len(questions) == 200
    for question in questions:
        context, choices = question["context"], question["choices"]
        right = choices[question["answer"]]
        assert any(context + right in text for text in texts)
        assert len(set(choices)) == 4
        assert not context[-1:].isspace() or not right[:1].isspace()
        assert max(map(len, choices)) - min(map(len, choices)) <= 20
    assert {question["answer"] for question in questions} == {0, 1, 2, 3}


def test_the_same_texts_give_the_same_questions(tasks: Any) -> None:
    text = (SAMPLES / "yanshan.txt").read_text(encoding="utf-8")
    assert tasks.ask([text], 50) == tasks.ask([text], 50)


def test_a_text_of_three_sentences_after_another_has_no_questions(tasks: Any) -> None:
    with pytest.raises(ValueError, match="3 different sentences, expected at least 4"):
        tasks.ask(["却说阿渊离了山门去。径往东行不止一日。到了一座大城之前。城门已经紧紧闭上了。"], 10)
