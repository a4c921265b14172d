"""The clean stage: raw files become a corpus in which every lost character is counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from pipeline.clean import stage, tasks
from pipeline.clean.options import MAX_SENTENCE_BYTES, CleanOptions
from pipeline.clean.report import render
from pipeline.errors import BadConfig, BadData, TooManyRejects
from pipeline.readers import compression, jsonl, readers
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import resolve_inputs
from pipeline.store.artifact import Artifact

SAMPLE = Path(__file__).resolve().parents[3] / "pipeline" / "sample"
TEXTS = (SAMPLE / "sample.jsonl.zst", SAMPLE / "yanshan.txt")
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def clean(root: Path, *paths: Path, name: str = "sample", **options: Any) -> Artifact:
    inputs = [file for path in paths for file in resolve_inputs(root, str(path), corpora=False)]
    return stage.clean(root, name, inputs, CleanOptions(**options), SilentProgress()).artifact


def entries(corpus: Artifact) -> list[dict[str, Any]]:
    data = b"".join(compression.read_blocks(corpus.file("documents.jsonl.zst")))
    decoded = [msgspec.json.decode(line) for line in data.splitlines()]
    return [entry | {"meta": jsonl.unpack_meta(entry["meta"])} for entry in decoded]


def documents_of(corpus: Artifact) -> Path:
    return corpus.file("documents.jsonl.zst")


def rejects(folder: Path) -> list[dict[str, Any]]:
    data = b"".join(compression.read_blocks(folder / "rejects.jsonl.zst"))
    return [msgspec.json.decode(line) for line in data.splitlines()]


def json_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The corpus of the sample texts of this project."""
    return clean(tmp_path_factory.mktemp("artifacts"), *TEXTS)


def test_sample_has_15_chapters_and_96_english_documents(sample: Artifact) -> None:
    assert sample.manifest.counts["headings"] == 15
    assert Counter(entry["source"] for entry in entries(sample)) == {"yanshan.txt": 15, "sample.jsonl.zst": 96}
    assert sample.manifest.counts["documents"] == 111


def test_characters_that_json_escapes_are_preserved(tmp_path: Path) -> None:
    text = 'C:\\甲\\"乙"\\n，say "no"\tand 𤣥 \x7f丙。\n/丁\\\\'
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    table = tmp_path / "map.tsv"
    table.write_text("U+E001\t\x02\n", encoding="utf-8")
    options: dict[str, Any] = {"without": ("quotes", "spaces", "widen"), "profile": "plain", "min_han": 0.0}
    [plain] = entries(clean(tmp_path, tmp_path / "text.txt", **options))
    assert plain["text"] == text.replace("\x7f", "")
    (tmp_path / "text.txt").write_text(text + "\ue001", encoding="utf-8")  # mapped to a control character
    [mapped] = entries(clean(tmp_path, tmp_path / "text.txt", pua_map=str(table), **options))
    assert mapped["text"] == text.replace("\x7f", "") + "\x02"


def test_headings_become_titles_and_are_removed_from_the_text(sample: Artifact) -> None:
    chapters = [entry for entry in entries(sample) if entry["source"] == "yanshan.txt"]
    assert [entry["title"].split()[0] for entry in chapters] == [f"第{number}回" for number in NUMBERS]
    text = "\n".join(entry["text"] for entry in chapters)
    assert not any(title_part in text for entry in chapters for title_part in entry["title"].split()[1:])
    assert not re.search("^第[一二三四五十]+回", text, re.MULTILINE)
    assert "第一回" not in sample.file("sentences.txt").read_text(encoding="utf-8")


NUMBERS = [*"一二三四五六七八九十", "十一", "十二", "十三", "十四", "十五"]


def test_every_han_character_of_the_sample_is_kept(sample: Artifact) -> None:
    chapters = [entry for entry in entries(sample) if entry["source"] == "yanshan.txt"]
    counts = Counter(HAN.findall("".join(entry["title"] + entry["text"] for entry in chapters)))
    assert counts == Counter(HAN.findall((SAMPLE / "yanshan.txt").read_text(encoding="utf-8")))
    assert all(counts[rare] for rare in "𠮷𤣥㸌𢎞𧍪𩽾𩾌𥻗𪚥𤩽𩾃")


def test_quotes_and_marks_of_the_sample_are_kept(sample: Artifact) -> None:
    text = "".join(entry["text"] for entry in entries(sample) if entry["source"] == "yanshan.txt")
    before = Counter((SAMPLE / "yanshan.txt").read_text(encoding="utf-8"))
    for mark in "，。？！：；、“”‘’《》（）…—":
        assert text.count(mark) == before[mark]


def test_english_documents_of_the_sample_are_unchanged(sample: Artifact) -> None:
    before = readers.read_documents(SAMPLE / "sample.jsonl.zst", Ledger(), print)
    after = [entry for entry in entries(sample) if entry["source"] == "sample.jsonl.zst"]
    assert [(entry["text"], entry["meta"]) for entry in after] == [
        (document.text, document.meta) for document in before
    ]


def test_ledger_of_the_sample_adds_up(sample: Artifact) -> None:
    ledger = sample.manifest.ledger
    for tally in ledger.values():
        assert tally["in"] == tally["out"] + sum(tally["dropped"].values())
    raw_text = (SAMPLE / "yanshan.txt").read_text(encoding="utf-8-sig")
    english = sum(
        len(document.text) for document in readers.read_documents(SAMPLE / "sample.jsonl.zst", Ledger(), print)
    )
    assert ledger["characters"]["in"] == len(raw_text) + english
    assert ledger["characters"]["out"] == sum(len(entry["text"]) for entry in entries(sample))
    assert ledger["documents"] == {"in": 111, "out": 111, "dropped": {}}


def test_lines_of_sentences_txt_are_not_blank_and_short_enough_for_sentencepiece(sample: Artifact) -> None:
    lines = sample.file("sentences.txt").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == sample.manifest.counts["sentences"]
    assert max(map(len, lines)) <= MAX_SENTENCE_BYTES == 4192
    assert all(line.strip() for line in lines)


def test_too_long_sentence_is_cut(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("却说" + "林冲，宋江；" * 2000 + "。\n" + "𤣥" * 3000, encoding="utf-8")
    corpus = clean(root, path)
    lines = corpus.file("sentences.txt").read_text(encoding="utf-8").splitlines()
    assert max(len(line.encode()) for line in lines) <= MAX_SENTENCE_BYTES
    assert "".join(lines) == path.read_text(encoding="utf-8").replace("\n", "")


def test_too_long_sentence_leaves_no_empty_line(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("林" * 3000 + "；\n宋江。", encoding="utf-8")
    assert all(clean(root, path).file("sentences.txt").read_text(encoding="utf-8").splitlines())


def test_cleaning_in_another_folder_gives_the_same_bytes(sample: Artifact, root: Path) -> None:
    copy = clean(root, *TEXTS)
    assert copy.path != sample.path
    assert copy.manifest == sample.manifest


def test_cleaning_again_is_unchanged(root: Path) -> None:
    inputs = resolve_inputs(root, str(SAMPLE / "yanshan.txt"), corpora=False)
    results = [stage.clean(root, "sample", inputs, CleanOptions(), SilentProgress()).result for _ in range(2)]
    assert results == ["built", "unchanged"]


@pytest.mark.parametrize("unit", ["chapter", "paragraph", "sentence", "document"])
def test_every_unit_keeps_all_han_characters_and_closes_the_ledger(sample: Artifact, root: Path, unit: str) -> None:
    corpus = clean(root, SAMPLE / "yanshan.txt", unit=unit)
    ledger = corpus.manifest.ledger["characters"]
    assert ledger["in"] == ledger["out"] + sum(ledger["dropped"].values())
    cleaned = "".join(entry["text"] for entry in entries(corpus))
    titles = "".join(entry.get("title", "") for entry in entries(sample))
    text = (SAMPLE / "yanshan.txt").read_text(encoding="utf-8")
    assert Counter(HAN.findall(cleaned + titles)) == Counter(HAN.findall(text))


def test_headings_are_counted_on_unit_document(root: Path) -> None:
    assert clean(root, SAMPLE / "yanshan.txt", unit="document").manifest.counts["headings"] == 15


def test_empty_and_too_short_documents_are_dropped_with_a_reason(root: Path, tmp_path: Path) -> None:
    lines = ['{"text":"long enough"}', '{"text":""}', '{"text":" \\n "}', '{"text":"no"}']
    corpus = clean(root, json_lines(tmp_path / "some.jsonl", *lines), min_chars=3)
    assert [entry["text"] for entry in entries(corpus)] == ["long enough"]
    assert corpus.manifest.ledger["documents"] == {"in": 4, "out": 1, "dropped": {"empty": 2, "too-short": 1}}
    assert corpus.manifest.ledger["characters"] == {"in": 16, "out": 11, "dropped": {"empty": 3, "too-short": 2}}


def test_empty_poem_is_counted_on_unit_sentence(root: Path, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "poems.json", '[{"paragraphs":["白日。"]},{"paragraphs":[]}]')
    corpus = clean(root, path, unit="sentence")
    assert corpus.manifest.ledger["documents"] == {"in": 2, "out": 1, "dropped": {"empty": 1}}


def test_every_document_of_a_corpus_has_text(root: Path, tmp_path: Path) -> None:
    lines = json_lines(tmp_path / "some.jsonl", '{"text":"one"}', '{"text":""}')
    assert [entry["text"] for entry in entries(clean(root, lines))] == ["one"]
    with pytest.raises(BadConfig, match="--min-chars must be 1 or more, got 0"):
        clean(root, lines, min_chars=0)


def test_poems_keep_their_titles_and_authors(root: Path, tmp_path: Path) -> None:
    poems = [
        {"title": "登鹳雀楼", "author": "王之涣", "paragraphs": ["白日依山尽,", "黄河入海流。"]},
        {"rhythmic": "虞美人", "paragraphs": ["春花秋月何时了？"]},
    ]
    path = json_lines(tmp_path / "poems.json", json.dumps(poems, ensure_ascii=False))
    poem, ci = entries(clean(root, path))
    assert (poem["text"], poem["title"]) == ("白日依山尽，\n黄河入海流。", "登鹳雀楼")
    assert (poem["source"], poem["meta"]) == ("poems.json", {"author": "王之涣"})
    assert ci == {"text": "春花秋月何时了？", "title": "虞美人", "source": "poems.json", "meta": None}


def test_every_line_of_a_corpus_has_the_same_fields_of_the_same_type(root: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("引首的话。\n第一回　得宝\n林冲走了一回。", encoding="utf-8")
    metas: list[Any] = ["a note", {"author": "甲", "tags": [1]}, None, 7, "{not JSON"]
    lines = [json.dumps({"text": f"one text {number}", "meta": meta}) for number, meta in enumerate(metas)]
    corpus = clean(root, tmp_path / "book.txt", json_lines(tmp_path / "some.jsonl", *lines))
    written = [json.loads(line) for line in b"".join(compression.read_blocks(documents_of(corpus))).splitlines()]
    assert {tuple(entry) for entry in written} == {("text", "title", "source", "meta")}
    assert {type(value) for entry in written for value in entry.values()} == {str}
    assert [entry["meta"] for entry in entries(corpus)] == [None, None, "a note", metas[1], None, "7", "{not JSON"]
    assert [entry["meta"] for entry in entries(clean(root, documents_of(corpus), name="again"))] == [
        entry["meta"] for entry in entries(corpus)
    ]


def test_too_many_bad_lines_publish_nothing_and_keep_the_rejects(root: Path, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "some.jsonl", '{"text":"good"}', '{"text":"cut', '{"body":"x"}', '{"text":"fine"}')
    with pytest.raises(TooManyRejects, match="2 of 4 documents are bad") as caught:
        clean(root, path)
    assert caught.value.exit_code == 11
    assert not list(root.glob("corpora/sample/*/manifest.json"))
    assert not (root / "corpora" / "sample" / "current").exists()
    (draft,) = root.glob("corpora/sample/.draft-*")
    assert caught.value.message.startswith("some.jsonl, line 2: bad-json; 2 of 4")
    assert str(draft) in caught.value.hint
    assert [(entry["file"], entry["line"], entry["offset"], entry["reason"]) for entry in rejects(draft)] == [
        ("some.jsonl", 2, 16, "bad-json"),
        ("some.jsonl", 3, 29, "bad-record"),
    ]


def test_first_bad_record_of_a_json_list_is_named(root: Path, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "some.json", '[{"text":"good"}, {"text":"fine"}, {"body":"x"}]')
    with pytest.raises(TooManyRejects, match=r"^some\.json, record 3: bad-record; 1 of 3 documents are bad"):
        clean(root, path)


def test_accepted_bad_lines_are_published_as_rejects(root: Path, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "some.jsonl", '{"text":"good"}', '{"text":"cut', '{"text":"fine"}')
    corpus = clean(root, path, max_bad=0.5)
    assert corpus.manifest.ledger["documents"] == {"in": 3, "out": 2, "dropped": {"bad-json": 1}}
    assert [entry["excerpt"] for entry in rejects(corpus.path)] == ['{"text":"cut']


def test_cleaning_succeeds_after_bad_lines_are_corrected(root: Path, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "some.jsonl", '{"text":"cut')
    with pytest.raises(TooManyRejects):
        clean(root, path)
    assert clean(root, json_lines(path, '{"text":"mended"}')).manifest.counts["documents"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "only white space"),
        ("　　\n", "only white space"),
        ("\ufeff", "the file is empty"),
        ("第一回　得宝\n", "no text is left"),
    ],
)
def test_file_without_text_raises_bad_data(root: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadData, match=rf"empty\.txt: .*{message}") as caught:
        clean(root, path)
    assert caught.value.exit_code == 65
    assert not list(root.glob("corpora/sample/*/manifest.json"))


def test_truncated_file_raises_bad_data_and_publishes_nothing(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"text":"a document"}\n' * 1000)[:-4])
    with pytest.raises(BadData, match="truncated"):
        clean(root, path)
    assert not list(root.glob("corpora/sample/*/manifest.json"))


def test_file_in_another_encoding_gives_the_same_text(root: Path, tmp_path: Path) -> None:
    text = (SAMPLE / "yanshan.txt").read_text(encoding="utf-8")
    (tmp_path / "book.txt").write_text(text, encoding="gb18030")
    gb18030 = clean(root, tmp_path / "book.txt", name="gb")
    utf8 = clean(root, SAMPLE / "yanshan.txt", name="utf8")
    assert [entry["text"] for entry in entries(gb18030)] == [entry["text"] for entry in entries(utf8)]


def test_unknown_choices_raise_bad_config() -> None:
    with pytest.raises(BadConfig, match="verse"):
        CleanOptions(unit="verse")
    with pytest.raises(BadConfig, match="prose"):
        CleanOptions(profile="prose")


def test_key_depends_on_the_options_that_decide_bytes(root: Path, tmp_path: Path) -> None:
    inputs = resolve_inputs(root, str(json_lines(tmp_path / "some.jsonl", '{"text":"one"}')), corpora=False)
    options = (CleanOptions(), CleanOptions(unit="sentence"), CleanOptions(profile="pile"), CleanOptions(min_chars=2))
    keys = [stage.identify("some", inputs, variant).key for variant in options]
    assert len(set(keys)) == len(keys)
    assert stage.identify("other", inputs, CleanOptions()).key == keys[0]
    assert stage.identify("some", inputs, CleanOptions(max_bad=0.5)).key == keys[0]
    parts = [replace(entry, members="*.txt") for entry in inputs]
    assert stage.identify("some", parts, CleanOptions()).key not in keys


BOOK = (
    "引首的话，一句。\n"
    + "".join(f"第{number}回　得宝\n" + "林冲走了一回，“也罢。去了。”\n又一日。\n\n" * 9 for number in "一二三四五")
    + "末了𠮷一句"
)


def titles_and_texts(corpus: Artifact) -> list[tuple[str, str]]:
    return [(entry.get("title", ""), entry["text"]) for entry in entries(corpus)]


@pytest.mark.parametrize("unit", ["chapter", "document", "sentence"])
@pytest.mark.parametrize("size", [3, 40, 333])
def test_task_size_does_not_change_the_corpus(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, size: int
) -> None:
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    single = clean(root, path, name="single", unit=unit)
    monkeypatch.setattr(tasks, "TASK_CHARACTERS", size)
    parts = clean(root, path, name="parts", unit=unit)
    assert titles_and_texts(parts) == titles_and_texts(single)
    assert parts.file("sentences.txt").read_bytes() == single.file("sentences.txt").read_bytes()
    report, expected = (msgspec.json.decode(corpus.file("report.json").read_bytes()) for corpus in (parts, single))
    for key in ("documents", "sentences", "characters", "files", "quotes"):
        assert report[key] == expected[key]
    assert parts.manifest.ledger["characters"]["out"] == single.manifest.ledger["characters"]["out"]


def test_long_blank_beginning_of_a_text_is_cleaned(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASK_CHARACTERS", 1000)
    path = tmp_path / "book.txt"
    path.write_text("\n" * (2 << 20) + "林冲走了一回。\n", encoding="utf-8")
    assert titles_and_texts(clean(root, path)) == [("", "林冲走了一回。")]


def test_two_jobs_give_the_same_bytes_as_one(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASK_CHARACTERS", 1000)
    path = tmp_path / "book.txt"
    path.write_text(BOOK * 20, encoding="utf-8")
    inputs = resolve_inputs(root, str(path), corpora=False)
    one, two = (
        stage.clean(root, name, inputs, CleanOptions(), SilentProgress(), jobs=jobs).artifact
        for name, jobs in (("one", 1), ("two", 2))
    )
    for name in ("documents.jsonl.zst", "sentences.txt", "report.json", "rejects.jsonl.zst"):
        assert one.file(name).read_bytes() == two.file(name).read_bytes()


def test_document_longer_than_a_task_is_filtered_as_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "TASK_CHARACTERS", 50)
    path = tmp_path / "book.txt"
    path.write_text("an English line in front\n" * 4 + "林冲走了一回也罢。\n" * 60, encoding="utf-8")
    assert len(entries(clean(root, path, min_chars=300))) == 1
    with pytest.raises(BadData, match="no text is left"):
        clean(root, path, min_chars=3000)
    path.write_text("an English line in front\n" * 400 + "林冲走了一回也罢。\n" * 6, encoding="utf-8")
    with pytest.raises(BadData, match=r"the only document was dropped \(1 few-han\), since --profile plain was given"):
        clean(root, path, profile="plain")
    assert len(entries(clean(root, path))) == 1


def test_hard_wrapped_text_longer_than_a_task_is_joined_as_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "TASK_CHARACTERS", 50)
    paragraph = (
        "且说林冲别了柴进，背上包裹，取路投东，行了十数日，时遇暮冬天气，彤云密布，朔风紧起，又见纷纷扬扬下着满天大雪。"
    )
    lines = [paragraph[at : at + 22] for at in range(0, len(paragraph), 22)] * 8
    path = tmp_path / "book.txt"
    path.write_text("\r\n".join(lines), encoding="utf-8")
    assert titles_and_texts(clean(root, path)) == [("", "\n".join([paragraph] * 8))]
    kept = [("", "\n".join(lines))]
    assert titles_and_texts(clean(root, path, name="kept", unwrap=False)) == kept
    assert titles_and_texts(clean(root, path, name="without", without=("unwrap",))) == kept


def test_text_without_line_ends_is_cut_after_a_sentence_and_rejoined(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "TASK_CHARACTERS", 50)
    monkeypatch.setattr(tasks, "MAX_LINE", 100)
    path = tmp_path / "book.txt"
    path.write_text("林冲走了一回也罢。" * 100, encoding="utf-8")
    corpus = clean(root, path)
    assert titles_and_texts(corpus) == [("", "林冲走了一回也罢。" * 100)]
    assert set(corpus.file("sentences.txt").read_text(encoding="utf-8").split()) == {"林冲走了一回也罢。"}


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_duplicates_after_the_first_are_rejected_with_their_location(root: Path, tmp_path: Path, dedup: str) -> None:
    poem = "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 8
    lines = [f'{{"text":"{text}"}}' for text in (poem, "白日依山尽。", poem.replace("，", "、"), "黄河入海流。")]
    path = json_lines(tmp_path / "poems.jsonl", *lines)
    corpus = clean(root, path, dedup=dedup)
    assert [entry["text"][:4] for entry in entries(corpus)] == ["床前明月", "白日依山", "黄河入海"]
    (reject,) = rejects(corpus.path)
    assert (reject["line"], reject["reason"]) == (3, "duplicate")
    assert reject["offset"] == sum(len(line.encode()) + 1 for line in lines[:2])


def test_near_duplicate_has_its_own_reject_reason(root: Path, tmp_path: Path) -> None:
    text = (SAMPLE / "yanshan.txt").read_text(encoding="utf-8-sig")[40:2040].replace("\n", "")
    texts = (text, text[:-9] + "另有一段。")
    path = json_lines(tmp_path / "a.jsonl", *(json.dumps({"text": text}) for text in texts))
    corpus = clean(root, path, dedup="near")
    assert corpus.manifest.ledger["documents"] == {"in": 2, "out": 1, "dropped": {"near-duplicate": 1}}
    report = json.loads(corpus.file("report.json").read_bytes())
    assert report["near_pairs"] == {"compared": 1, "similar": 1, "uncompared": 0}
    [example] = report["examples"]["near-duplicate"]
    assert 0.9 < example["similarity"] < 1
    assert example["original"] == {"source": "a.jsonl", "line": 1, "text": text[:80]}
    assert example["duplicate"] == {"source": "a.jsonl", "line": 2, "text": text[:80]}
    assert [path.name for path in corpus.path.iterdir() if path.name.startswith(".")] == []


def test_near_duplicates_are_dropped_across_files_for_any_number_of_jobs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "TASK_CHARACTERS", 3000)
    text = (SAMPLE / "yanshan.txt").read_text(encoding="utf-8-sig").replace("\n", "")
    texts = [text[start : start + 1000] for start in range(0, 9000, 1000)]
    changed = [text[:-9] + "另有一段。" for text in texts]
    one = json_lines(tmp_path / "a.jsonl", *(json.dumps({"text": text}) for text in [*texts, *changed[:3]]))
    other = json_lines(
        tmp_path / "b.jsonl", *(json.dumps({"text": text}) for text in [*changed[2:], *texts[:2], "甲。"])
    )
    corpora = []
    for jobs in (1, 2):
        inputs = [file for path in (one, other) for file in resolve_inputs(root, str(path), corpora=False)]
        options = CleanOptions(dedup="near", profile="plain")
        corpora.append(stage.clean(root / str(jobs), "near", inputs, options, SilentProgress(), jobs=jobs).artifact)
    assert corpora[0].digest == corpora[1].digest
    assert corpora[0].manifest.ledger["documents"]["dropped"] == {"duplicate": 3, "near-duplicate": 9}
    assert [entry["source"] for entry in entries(corpora[0])] == ["a.jsonl"] * 9 + ["b.jsonl"]


def test_extracted_notes_are_in_the_meta_of_their_document(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("林冲（一作甲）走了一回。\n第一回\n宋江（按：乙）。", encoding="utf-8")
    corpus = clean(root, path, notes=("（）=extract",), unit="document")
    (entry,) = entries(corpus)
    assert entry["text"] == "林冲走了一回。\n宋江。"
    assert entry["meta"] == {"notes": ["一作甲", "按：乙"]}


def test_chinese_json_lines_are_cleaned_as_plain_and_others_as_text(root: Path, tmp_path: Path) -> None:
    chinese = json_lines(tmp_path / "a.jsonl", '{"text":"林冲 走了,一回."}')
    english = json_lines(tmp_path / "b.jsonl", '{"text":"Lin Chong , left ."}')
    assert [entry["text"] for entry in entries(clean(root, chinese))] == ["林冲走了，一回。"]
    assert [entry["text"] for entry in entries(clean(root, english))] == ["Lin Chong , left ."]


def test_lacunae_drop_unit_drops_documents_with_lacunae(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("林冲□走了一回，又走了一回。\n宋江也走了一回。", encoding="utf-8")
    corpus = clean(root, path, unit="sentence", lacunae="drop-unit")
    assert [entry["text"] for entry in entries(corpus)] == ["宋江也走了一回。"]
    assert corpus.manifest.ledger["documents"]["dropped"] == {"lacunae": 1}


@pytest.mark.parametrize("options", [{"without": ("nosuch",)}, {"max_bad": float("nan")}, {"max_bad": -1.0}])
def test_unknown_rule_and_invalid_fraction_raise_bad_config(options: dict[str, Any]) -> None:
    with pytest.raises(BadConfig):
        CleanOptions(**options)


def test_report_warns_of_a_text_without_punctuation(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("床前明月光\n疑是地上霜\n" * 20, encoding="utf-8")
    corpus = clean(root, path)
    assert any("NO PUNCTUATION" in line for line in stage.report_table(corpus))
    assert corpus.file("sentences.txt").read_text(encoding="utf-8").splitlines() == ["床前明月光", "疑是地上霜"] * 20


def test_dry_run_gives_the_report_that_the_run_publishes(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    inputs = resolve_inputs(root, str(path), corpora=False)
    report = render.to_json(stage.build_report(inputs, CleanOptions(), SilentProgress()))
    assert not (root / "corpora").exists()
    assert msgspec.json.decode(clean(root, path).file("report.json").read_bytes()) == json.loads(json.dumps(report))


def test_explain_shows_changes_of_a_rule_and_rejects_an_unknown_one(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text('林冲道："去了."又一日', encoding="utf-8")
    inputs = resolve_inputs(root, str(path), corpora=False)
    assert any("“" in after for _, after in stage.explain(inputs, CleanOptions(), "quotes"))
    with pytest.raises(BadConfig, match="no rule 'bogus'"):
        stage.explain(inputs, CleanOptions(), "bogus")


def test_shuihu_becomes_161_documents_and_every_character_is_counted(shared: Path, root: Path) -> None:
    path = shared / "data" / "shuihu_raw.txt"
    text = path.read_text(encoding="utf-8-sig")
    corpus = clean(root, path, name="shuihu")
    chapters = entries(corpus)
    assert (len(chapters), corpus.manifest.counts["headings"]) == (161, 161)
    ledger = corpus.manifest.ledger
    assert ledger["documents"] == {"in": 161, "out": 161, "dropped": {}}
    assert ledger["characters"]["in"] == len(text) == 863_187  # without the byte order mark
    assert ledger["characters"]["out"] == sum(len(entry["text"]) for entry in chapters)
    dropped = ledger["characters"]["dropped"]
    assert ledger["characters"]["in"] == ledger["characters"]["out"] + sum(dropped.values())
    line_ends = dropped["headings"] + dropped["blank-lines"] - sum(len(entry["title"]) + 2 for entry in chapters)
    assert line_ends == 160, "line ends between 161 chapters"


def test_shuihu_keeps_its_quotes_and_shows_gaiji_as_lacunae(shared: Path, root: Path) -> None:
    path = shared / "data" / "shuihu_raw.txt"
    before = Counter(path.read_text(encoding="utf-8"))
    after = Counter("".join(entry["text"] for entry in entries(clean(root, path, name="shuihu"))))
    assert after["“"] + after["”"] == before["“"] + before["”"] + before['"'] == 9_188 + 9_167 + 2_038
    assert after["‘"] + after["’"] == before["‘"] + before["’"] + before["'"]
    assert abs(after["“"] - after["”"]) <= 1
    private = {character: count for character, count in before.items() if "\ue000" <= character <= "\uf8ff"}
    assert sum(private.values()) == 47
    assert not any(after[character] for character in private)
    assert after["□"] == 47
    assert after["…"] == before["…"]
    assert not any(after[character] for character in "\"',!?．\u3000\ufeff\t ")


def test_chapters_of_shuihu_lose_no_han_character(shared: Path, root: Path) -> None:
    path = shared / "data" / "shuihu_raw.txt"
    chapters = entries(clean(root, path, name="shuihu"))
    counts = Counter(HAN.findall("".join(entry["title"] + entry["text"] for entry in chapters)))
    assert counts == Counter(HAN.findall(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("markup", ["<p>{}</p>\n", "{}<br>&nbsp;&nbsp;", "&lt;div&gt;{}&lt;/div&gt;\n"])
def test_text_file_full_of_tags_is_cleaned_as_html(tmp_path: Path, markup: str) -> None:
    (tmp_path / "book.txt").write_text(
        "".join(map(markup.format, ["话说林冲。", "又一日,宋江走也。"] * 3)), encoding="utf-8"
    )
    corpus = clean(tmp_path, tmp_path / "book.txt")
    [entry] = entries(corpus)
    assert entry["text"] == "\n".join(["话说林冲。", "又一日，宋江走也。"] * 3)
    report = json.loads(corpus.file("report.json").read_bytes())
    assert (report["files"][0]["profile"], report["warnings"]) == ("html", [])


def test_tags_that_the_profile_does_not_remove_are_reported(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("<p>话说林冲，走到天王堂边，投东去了。</p>\n" * 9, encoding="utf-8")
    corpus = clean(tmp_path, tmp_path / "book.txt", profile="plain")
    [warning] = json.loads(corpus.file("report.json").read_bytes())["warnings"]
    assert re.fullmatch(
        r"MARKUP, .* tags per 1,000 characters, in 1 of 1 files \(book.txt\): --profile html\?", warning
    )
