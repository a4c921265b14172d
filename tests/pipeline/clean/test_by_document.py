"""The profile of each document follows from its script: Chinese rules for Han-rich text, plain ones for other text."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from pipeline.clean import stage, tasks
from pipeline.clean.options import CleanOptions
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import resolve_inputs
from tests.pipeline.clean.test_stage import HAN, clean, entries, json_lines, rejects, titles_and_texts

# Text, and its cleaned documents by unit: chapter, sentence
MIXED: tuple[tuple[str, list[str] | None, list[str]], ...] = (
    ("林冲 走了,一回. 又一日。", ["林冲走了，一回。又一日。"], ["林冲走了，一回。", "又一日。"]),
    ("Lin Chong , left .\n\nMr. Wu ran! He fell.", None, ["Lin Chong , left .", "Mr. Wu ran!", "He fell."]),
    ("", [], []),
    ("\x01 Only , text . \n", [" Only , text . \n"], ["Only , text ."]),
    ("第一回\n宋江。\n第二回\n“也罢。去了。”", ["宋江。", "“也罢。去了。”"], ["宋江。", "“也罢。去了。”"]),
    ("3.14", None, ["3.14"]),
    ("《》……", [], []),
)


@pytest.mark.parametrize("dedup", ["no", "exact"])
@pytest.mark.parametrize("unit", ["chapter", "sentence"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_each_record_has_the_profile_of_its_script_and_keeps_its_place(
    root: Path, tmp_path: Path, unit: str, dedup: str, jobs: int
) -> None:
    records = [{"text": text, "title": str(number)} for number, (text, *_) in enumerate(MIXED)]
    path = json_lines(tmp_path / "mixed.jsonl", *map(json.dumps, records))
    inputs = resolve_inputs(root, str(path), corpora=False)
    options = CleanOptions(unit=unit, dedup=dedup)
    corpus = stage.clean(root, "mixed", inputs, options, SilentProgress(), jobs=jobs).artifact
    expected = [
        part
        for text, chapters, sentences in MIXED
        for part in (sentences if unit == "sentence" else [text] if chapters is None else chapters)
    ]
    assert [entry["text"] for entry in entries(corpus)] == expected
    titles = [entry["title"] for entry in entries(corpus)]
    assert [title for title in titles if title.isdigit()] == sorted(title for title in titles if title.isdigit())
    lines = [line for text in expected for line in text.split("\n") if line.strip()]
    written = corpus.file("sentences.txt").read_text(encoding="utf-8").splitlines()
    assert "".join(written) == "".join(lines)
    assert [(reject["line"], reject["reason"]) for reject in rejects(corpus.path)] == [(3, "empty"), (7, "no-han")]
    for tally in corpus.manifest.ledger.values():
        assert tally["in"] == tally["out"] + sum(tally["dropped"].values())
    report = msgspec.json.decode(corpus.file("report.json").read_bytes())
    chinese = [text for text in expected if HAN.search(text)]
    assert report["profiles"]["plain"] == {"documents": len(chinese), "characters": sum(map(len, chinese))}
    assert report["profiles"]["text"]["documents"] == len(expected) - len(chinese)


def test_chinese_then_english_records_are_all_kept_without_min_han(root: Path, tmp_path: Path) -> None:
    lines = ['{"text":"却说阿渊携砚来到江边。"}'] * 110 + ['{"text":"old the what in book"}'] * 200
    path = json_lines(tmp_path / "chinese-first.jsonl", *lines)
    corpus = clean(root, path)
    assert corpus.manifest.ledger["documents"] == {"in": 310, "out": 310, "dropped": {}}
    assert any(line.startswith("profiles") and "text 200 documents" in line for line in stage.report_table(corpus))
    limited = clean(root, path, min_han=0.5)
    assert limited.manifest.ledger["documents"] == {"in": 310, "out": 110, "dropped": {"no-han": 200}}


def test_chapters_in_another_language_are_kept_unless_a_profile_is_named(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("第一回\n" + "林冲走了一回。" * 9 + "\n第二回\nIt rained.\n", encoding="utf-8")
    assert [title for title, _ in titles_and_texts(clean(root, path))] == ["第一回", "第二回"]
    assert [title for title, _ in titles_and_texts(clean(root, path, profile="plain"))] == ["第一回"]


def test_english_text_file_is_kept_as_it_is(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASK_CHARACTERS", 1000)
    text = "".join(f'{number} It rained , "all" day.\n\n  He left.\n\n' for number in range(200))
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    assert titles_and_texts(clean(root, path)) == [("", text)]
    assert len(entries(clean(root, path, unit="paragraph"))) == 400
    assert [text for _, text in titles_and_texts(clean(root, path, unit="sentence"))][:3] == [
        '0 It rained , "all" day.',
        "He left.",
        '1 It rained , "all" day.',
    ]
