"""The clean stage: raw files become a corpus in which every loss is counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard

from pipeline.clean import stage as corpus
from pipeline.clean import tasks as texts
from pipeline.clean.options import MAX_SENTENCE_BYTES, CleanOptions
from pipeline.clean.report import render as summary
from pipeline.errors import BadConfig, BadData, TooManyRejects
from pipeline.readers import compression, readers
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.progress import Silent
from pipeline.sources import inputs as raw
from pipeline.store.artifact import Artifact

SAMPLE = Path(__file__).resolve().parents[3] / "pipeline" / "sample"
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def clean(root: Path, *paths: Path, name: str = "sample", **options: Any) -> Artifact:
    inputs = [file for path in paths for file in raw.inputs(root, str(path), corpora=False)]
    return corpus.clean(root, name, inputs, CleanOptions(**options), Silent()).artifact


def entries(made: Artifact) -> list[dict[str, Any]]:
    data = b"".join(compression.blocks(made.file("documents.jsonl.zst")))
    return [msgspec.json.decode(line) for line in data.splitlines()]


def rejects(folder: Path) -> list[dict[str, Any]]:
    data = b"".join(compression.blocks(folder / "rejects.jsonl.zst"))
    return [msgspec.json.decode(line) for line in data.splitlines()]


def json_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The corpus of the text that comes with the project."""
    return clean(tmp_path_factory.mktemp("artifacts"), SAMPLE)


def test_the_sample_has_15_chapters_and_96_english_documents(sample: Artifact) -> None:
    assert sample.manifest.counts["headings"] == 15
    assert Counter(entry["source"] for entry in entries(sample)) == {"yanshan.txt": 15, "sample.jsonl.zst": 96}
    assert sample.manifest.counts["documents"] == 111


def test_what_json_spells_in_a_way_of_its_own_comes_back(tmp_path: Path) -> None:
    text = 'C:\\甲\\"乙"\\n，say "no"\tand 𤣥 \x7f丙。\n/丁\\\\'
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    table = tmp_path / "map.tsv"
    table.write_text("U+E001\t\x02\n", encoding="utf-8")
    kept = {"without": ("quotes", "spaces", "widen"), "profile": "plain", "min_han": 0.0}
    [plain] = entries(clean(tmp_path, tmp_path / "text.txt", **kept))
    assert plain["text"] == text.replace("\x7f", "")
    (tmp_path / "text.txt").write_text(text + "\ue001", encoding="utf-8")  # of which a table makes a control
    [odd] = entries(clean(tmp_path, tmp_path / "text.txt", pua_map=str(table), **kept))
    assert odd["text"] == text.replace("\x7f", "") + "\x02"


def test_no_heading_stays_in_the_text_and_each_becomes_a_title(sample: Artifact) -> None:
    chapters = [entry for entry in entries(sample) if entry["source"] == "yanshan.txt"]
    assert [entry["title"].split()[0] for entry in chapters] == [f"第{number}回" for number in NUMBERS]
    text = "\n".join(entry["text"] for entry in chapters)
    assert not any(title_part in text for entry in chapters for title_part in entry["title"].split()[1:])
    assert not re.search("^第[一二三四五十]+回", text, re.MULTILINE)
    assert "第一回" not in sample.file("sentences.txt").read_text(encoding="utf-8")


NUMBERS = [*"一二三四五六七八九十", "十一", "十二", "十三", "十四", "十五"]


def test_every_han_character_of_the_sample_is_kept_rare_ones_too(sample: Artifact) -> None:
    chapters = [entry for entry in entries(sample) if entry["source"] == "yanshan.txt"]
    kept = Counter(HAN.findall("".join(entry["title"] + entry["text"] for entry in chapters)))
    assert kept == Counter(HAN.findall((SAMPLE / "yanshan.txt").read_text(encoding="utf-8")))
    assert all(kept[rare] for rare in "𠮷𤣥㸌𢎞𧍪𩽾𩾌𥻗𪚥𤩽𩾃")


def test_quotes_and_marks_of_the_sample_are_kept(sample: Artifact) -> None:
    text = "".join(entry["text"] for entry in entries(sample) if entry["source"] == "yanshan.txt")
    before = Counter((SAMPLE / "yanshan.txt").read_text(encoding="utf-8"))
    for mark in "，。？！：；、“”‘’《》（）…—":
        assert text.count(mark) == before[mark]


def test_english_documents_of_the_sample_come_through_byte_for_byte(sample: Artifact) -> None:
    before = readers.read(SAMPLE / "sample.jsonl.zst", Ledger(), print)
    after = [entry for entry in entries(sample) if entry["source"] == "sample.jsonl.zst"]
    assert [(entry["text"], entry["meta"]) for entry in after] == [(each.text, each.meta) for each in before]


def test_the_ledger_of_the_sample_adds_up(sample: Artifact) -> None:
    ledger = sample.manifest.ledger
    for tally in ledger.values():
        assert tally["in"] == tally["out"] + sum(tally["dropped"].values())
    raw_text = (SAMPLE / "yanshan.txt").read_text(encoding="utf-8-sig")
    english = sum(len(each.text) for each in readers.read(SAMPLE / "sample.jsonl.zst", Ledger(), print))
    assert ledger["characters"]["in"] == len(raw_text) + english
    assert ledger["characters"]["out"] == sum(len(entry["text"]) for entry in entries(sample))
    assert ledger["documents"] == {"in": 111, "out": 111, "dropped": {}}


def test_a_line_of_sentences_txt_is_one_sentence_that_sentencepiece_does_not_skip(sample: Artifact) -> None:
    lines = sample.file("sentences.txt").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == sample.manifest.counts["sentences"]
    assert max(map(len, lines)) <= MAX_SENTENCE_BYTES == 4192
    assert all(line.strip() for line in lines)


def test_a_sentence_too_long_is_cut_and_not_dropped(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("却说" + "林冲，宋江；" * 2000 + "。\n" + "𤣥" * 3000, encoding="utf-8")
    made = clean(root, path)
    lines = made.file("sentences.txt").read_text(encoding="utf-8").splitlines()
    assert max(len(line.encode()) for line in lines) <= MAX_SENTENCE_BYTES
    assert "".join(lines) == path.read_text(encoding="utf-8").replace("\n", "")


def test_a_sentence_too_long_leaves_no_empty_line(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("林" * 3000 + "；\n宋江。", encoding="utf-8")
    assert all(clean(root, path).file("sentences.txt").read_text(encoding="utf-8").splitlines())


def test_cleaning_twice_gives_the_same_bytes(sample: Artifact, root: Path) -> None:
    again = clean(root, SAMPLE)
    assert again.path != sample.path
    assert again.manifest == sample.manifest


def test_cleaning_the_same_again_has_nothing_to_do(root: Path) -> None:
    inputs = raw.inputs(root, str(SAMPLE), corpora=False)
    results = [corpus.clean(root, "sample", inputs, CleanOptions(), Silent()).result for _ in range(2)]
    assert results == ["built", "unchanged"]


@pytest.mark.parametrize("unit", ["chapter", "paragraph", "sentence", "document"])
def test_the_ledger_closes_and_no_han_character_is_lost_on_every_unit(sample: Artifact, root: Path, unit: str) -> None:
    made = clean(root, SAMPLE / "yanshan.txt", unit=unit)
    ledger = made.manifest.ledger["characters"]
    assert ledger["in"] == ledger["out"] + sum(ledger["dropped"].values())
    kept = "".join(entry["text"] for entry in entries(made))
    titles = "".join(entry.get("title", "") for entry in entries(sample))
    text = (SAMPLE / "yanshan.txt").read_text(encoding="utf-8")
    assert Counter(HAN.findall(kept + titles)) == Counter(HAN.findall(text))


def test_headings_are_counted_on_the_unit_document_too(root: Path) -> None:
    assert clean(root, SAMPLE / "yanshan.txt", unit="document").manifest.counts["headings"] == 15


def test_documents_that_are_empty_or_too_short_are_dropped_by_name(root: Path, tmp_path: Path) -> None:
    lines = ['{"text":"long enough"}', '{"text":""}', '{"text":" \\n "}', '{"text":"no"}']
    made = clean(root, json_lines(tmp_path / "some.jsonl", *lines), min_chars=3)
    assert [entry["text"] for entry in entries(made)] == ["long enough"]
    assert made.manifest.ledger["documents"] == {"in": 4, "out": 1, "dropped": {"empty": 2, "too-short": 1}}
    assert made.manifest.ledger["characters"] == {"in": 16, "out": 11, "dropped": {"empty": 3, "too-short": 2}}


def test_an_empty_poem_is_counted_on_the_unit_sentence_too(root: Path, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "poems.json", '[{"paragraphs":["白日。"]},{"paragraphs":[]}]')
    made = clean(root, path, unit="sentence")
    assert made.manifest.ledger["documents"] == {"in": 2, "out": 1, "dropped": {"empty": 1}}


def test_every_entry_of_a_corpus_has_a_text(root: Path, tmp_path: Path) -> None:
    lines = json_lines(tmp_path / "some.jsonl", '{"text":"one"}', '{"text":""}')
    assert [entry["text"] for entry in entries(clean(root, lines))] == ["one"]
    with pytest.raises(BadConfig, match="min_chars is 0"):
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
    assert ci == {"text": "春花秋月何时了？", "title": "虞美人", "source": "poems.json"}


def test_too_many_broken_lines_publish_nothing_and_keep_the_rejects(root: Path, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "some.jsonl", '{"text":"good"}', '{"text":"cut', '{"body":"x"}', '{"text":"fine"}')
    with pytest.raises(TooManyRejects, match="2 of 4 documents are bad") as caught:
        clean(root, path)
    assert caught.value.exit_code == 11
    assert not list(root.glob("corpora/sample/*/manifest.json"))
    assert not (root / "corpora" / "sample" / "current").exists()
    (draft,) = root.glob("corpora/sample/.draft-*")
    assert str(draft) in caught.value.what
    assert [(entry["file"], entry["line"], entry["offset"], entry["reason"]) for entry in rejects(draft)] == [
        ("some.jsonl", 2, 16, "bad-json"),
        ("some.jsonl", 3, 29, "bad-record"),
    ]


def test_as_many_broken_lines_as_are_allowed_are_published_with_their_rejects(root: Path, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "some.jsonl", '{"text":"good"}', '{"text":"cut', '{"text":"fine"}')
    made = clean(root, path, max_bad=0.5)
    assert made.manifest.ledger["documents"] == {"in": 3, "out": 2, "dropped": {"bad-json": 1}}
    assert [entry["excerpt"] for entry in rejects(made.path)] == ['{"text":"cut']


def test_mending_the_broken_lines_is_enough_to_go_on(root: Path, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "some.jsonl", '{"text":"cut')
    with pytest.raises(TooManyRejects):
        clean(root, path)
    assert clean(root, json_lines(path, '{"text":"mended"}')).manifest.counts["documents"] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        ("\n\n", "only white space"),
        ("　　\n", "only white space"),
        ("\ufeff", "the file is empty"),
        ("第一回　得宝\n", "no text is left"),
    ],
)
def test_a_file_without_text_is_bad_data(root: Path, tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadData, match=rf"empty\.txt: .*{said}") as caught:
        clean(root, path)
    assert caught.value.exit_code == 65
    assert not list(root.glob("corpora/sample/*/manifest.json"))


def test_a_file_cut_short_publishes_nothing(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"text":"a document"}\n' * 1000)[:-4])
    with pytest.raises(BadData, match="truncated"):
        clean(root, path)
    assert not list(root.glob("corpora/sample/*/manifest.json"))


def test_a_file_in_another_encoding_gives_the_same_text(root: Path, tmp_path: Path) -> None:
    text = (SAMPLE / "yanshan.txt").read_text(encoding="utf-8")
    (tmp_path / "book.txt").write_text(text, encoding="gb18030")
    made = clean(root, tmp_path / "book.txt", name="gb")
    plain = clean(root, SAMPLE / "yanshan.txt", name="utf8")
    assert [entry["text"] for entry in entries(made)] == [entry["text"] for entry in entries(plain)]


def test_options_that_cannot_be_are_refused_before_any_work() -> None:
    with pytest.raises(BadConfig, match="verse"):
        CleanOptions(unit="verse")
    with pytest.raises(BadConfig, match="prose"):
        CleanOptions(profile="prose")


def test_what_decides_the_bytes_decides_the_key(root: Path, tmp_path: Path) -> None:
    inputs = raw.inputs(root, str(json_lines(tmp_path / "some.jsonl", '{"text":"one"}')), corpora=False)
    options = (CleanOptions(), CleanOptions(unit="sentence"), CleanOptions(profile="pile"), CleanOptions(min_chars=2))
    keys = [corpus.identify("some", inputs, each).key for each in options]
    assert len(set(keys)) == len(keys)
    assert corpus.identify("other", inputs, CleanOptions()).key == keys[0]
    assert corpus.identify("some", inputs, CleanOptions(max_bad=0.5)).key == keys[0]


BOOK = (
    "引首的话，一句。\n"
    + "".join(f"第{number}回　得宝\n" + "林冲走了一回，“也罢。去了。”\n又一日。\n\n" * 9 for number in "一二三四五")
    + "末了𠮷一句"
)


def texts_of(made: Artifact) -> list[tuple[str, str]]:
    return [(entry.get("title", ""), entry["text"]) for entry in entries(made)]


@pytest.mark.parametrize("unit", ["chapter", "document", "sentence"])
@pytest.mark.parametrize("size", [3, 40, 333])
def test_a_text_that_comes_in_pieces_is_the_same_corpus(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, size: int
) -> None:
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    whole = clean(root, path, name="whole", unit=unit)
    monkeypatch.setattr(texts, "PIECE", size)
    parts = clean(root, path, name="parts", unit=unit)
    assert texts_of(parts) == texts_of(whole)
    assert parts.file("sentences.txt").read_bytes() == whole.file("sentences.txt").read_bytes()
    ours, theirs = (msgspec.json.decode(made.file("report.json").read_bytes()) for made in (parts, whole))
    for key in ("documents", "sentences", "characters", "files", "quotes"):
        assert ours[key] == theirs[key]
    assert parts.manifest.ledger["characters"]["out"] == whole.manifest.ledger["characters"]["out"]


def test_two_jobs_make_the_same_bytes_as_one(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "PIECE", 1000)
    path = tmp_path / "book.txt"
    path.write_text(BOOK * 20, encoding="utf-8")
    inputs = raw.inputs(root, str(path), corpora=False)
    one, two = (
        corpus.clean(root, name, inputs, CleanOptions(), Silent(), jobs=jobs).artifact
        for name, jobs in (("one", 1), ("two", 2))
    )
    for name in ("documents.jsonl.zst", "sentences.txt", "report.json", "rejects.jsonl.zst"):
        assert one.file(name).read_bytes() == two.file(name).read_bytes()


def test_a_document_longer_than_a_piece_is_judged_whole(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PIECE", 50)
    path = tmp_path / "book.txt"
    path.write_text("an English line in front\n" * 4 + "林冲走了一回也罢。\n" * 60, encoding="utf-8")
    assert len(entries(clean(root, path, min_chars=300))) == 1
    with pytest.raises(BadData, match="no text is left"):
        clean(root, path, min_chars=3000)
    path.write_text("an English line in front\n" * 400 + "林冲走了一回也罢。\n" * 6, encoding="utf-8")
    with pytest.raises(BadData, match="no text is left"):
        clean(root, path)


def test_a_text_without_line_ends_is_cut_behind_a_sentence_and_put_together_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PIECE", 50)
    monkeypatch.setattr(texts, "LONGEST_LINE", 100)
    path = tmp_path / "book.txt"
    path.write_text("林冲走了一回也罢。" * 100, encoding="utf-8")
    made = clean(root, path)
    assert texts_of(made) == [("", "林冲走了一回也罢。" * 100)]
    assert set(made.file("sentences.txt").read_text(encoding="utf-8").split()) == {"林冲走了一回也罢。"}


@pytest.mark.parametrize("way", ["exact", "near"])
def test_of_like_documents_the_first_stays_and_the_others_are_rejected_with_their_place(
    root: Path, tmp_path: Path, way: str
) -> None:
    poem = "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 8
    lines = [f'{{"text":"{text}"}}' for text in (poem, "白日依山尽。", poem.replace("，", "、"), "黄河入海流。")]
    path = json_lines(tmp_path / "poems.jsonl", *lines)
    made = clean(root, path, dedup=way)
    assert [entry["text"][:4] for entry in entries(made)] == ["床前明月", "白日依山", "黄河入海"]
    (reject,) = rejects(made.path)
    assert (reject["line"], reject["reason"]) == (3, "duplicate")
    assert reject["offset"] == sum(len(line.encode()) + 1 for line in lines[:2])


def test_a_near_duplicate_is_named_so(root: Path, tmp_path: Path) -> None:
    text = (SAMPLE / "yanshan.txt").read_text(encoding="utf-8-sig")[40:2040].replace("\n", "")
    path = json_lines(tmp_path / "a.jsonl", *(json.dumps({"text": each}) for each in (text, text[:-9] + "另有一段。")))
    made = clean(root, path, dedup="near")
    assert made.manifest.ledger["documents"] == {"in": 2, "out": 1, "dropped": {"near-duplicate": 1}}


def test_notes_that_are_extracted_stay_beside_their_document(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("林冲（一作甲）走了一回。\n第一回\n宋江（按：乙）。", encoding="utf-8")
    made = clean(root, path, notes=("（）=extract",), unit="document")
    (entry,) = entries(made)
    assert entry["text"] == "林冲走了一回。\n宋江。"
    assert entry["meta"] == {"notes": ["一作甲", "按：乙"]}


def test_chinese_json_lines_are_cleaned_as_chinese_and_others_as_the_pile(root: Path, tmp_path: Path) -> None:
    chinese = json_lines(tmp_path / "a.jsonl", '{"text":"林冲 走了,一回."}')
    english = json_lines(tmp_path / "b.jsonl", '{"text":"Lin Chong , left ."}')
    assert [entry["text"] for entry in entries(clean(root, chinese))] == ["林冲走了，一回。"]
    assert [entry["text"] for entry in entries(clean(root, english))] == ["Lin Chong , left ."]


def test_documents_with_lacunae_can_be_dropped(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("林冲□走了一回，又走了一回。\n宋江也走了一回。", encoding="utf-8")
    made = clean(root, path, unit="sentence", lacunae="drop-unit")
    assert [entry["text"] for entry in entries(made)] == ["宋江也走了一回。"]
    assert made.manifest.ledger["documents"]["dropped"] == {"lacunae": 1}


@pytest.mark.parametrize("options", [{"without": ("nosuch",)}, {"max_bad": float("nan")}, {"max_bad": -1.0}])
def test_what_no_rule_and_no_share_can_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadConfig):
        CleanOptions(**options)


def test_a_report_says_when_a_text_has_no_punctuation(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("床前明月光\n疑是地上霜\n" * 20, encoding="utf-8")
    made = clean(root, path)
    assert any("NO PUNCTUATION" in line for line in corpus.table(made))
    assert made.file("sentences.txt").read_text(encoding="utf-8").splitlines() == ["床前明月光", "疑是地上霜"] * 20


def test_a_dry_run_says_what_the_run_then_publishes(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    inputs = raw.inputs(root, str(path), corpora=False)
    told = summary.to_json(corpus.survey(inputs, CleanOptions(), Silent()))
    assert not (root / "corpora").exists()
    assert msgspec.json.decode(clean(root, path).file("report.json").read_bytes()) == json.loads(json.dumps(told))


def test_a_rule_is_explained_by_what_it_changes_and_an_unknown_one_is_refused(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text('林冲道："去了."又一日', encoding="utf-8")
    inputs = raw.inputs(root, str(path), corpora=False)
    assert any("“" in after for _, after in corpus.explain(inputs, CleanOptions(), "quotes"))
    with pytest.raises(BadConfig, match="no rule 'bogus'"):
        corpus.explain(inputs, CleanOptions(), "bogus")


def test_shuihu_becomes_161_documents_and_no_character_goes_uncounted(shared: Path, root: Path) -> None:
    path = shared / "data" / "shuihu_raw.txt"
    text = path.read_text(encoding="utf-8-sig")
    made = clean(root, path, name="shuihu")
    found = entries(made)
    assert (len(found), made.manifest.counts["headings"]) == (161, 161)
    ledger = made.manifest.ledger
    assert ledger["documents"] == {"in": 161, "out": 161, "dropped": {}}
    assert ledger["characters"]["in"] == len(text) == 863_187  # a byte order mark is no text
    assert ledger["characters"]["out"] == sum(len(entry["text"]) for entry in found)
    dropped = ledger["characters"]["dropped"]
    assert ledger["characters"]["in"] == ledger["characters"]["out"] + sum(dropped.values())
    line_ends = dropped["headings"] + dropped["blank-lines"] - sum(len(entry["title"]) + 2 for entry in found)
    assert line_ends == 160, "those between 161 chapters"


def test_shuihu_keeps_its_quotes_and_its_unknown_characters(shared: Path, root: Path) -> None:
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
    assert not any(after[intruder] for intruder in "\"',!?．\u3000\ufeff\t ")


def test_the_chapters_of_shuihu_lose_no_han_character(shared: Path, root: Path) -> None:
    path = shared / "data" / "shuihu_raw.txt"
    found = entries(clean(root, path, name="shuihu"))
    kept = Counter(HAN.findall("".join(entry["title"] + entry["text"] for entry in found)))
    assert kept == Counter(HAN.findall(path.read_text(encoding="utf-8")))
