"""The report of a cleaning: what workers counted adds up, closes, fits on a screen and says what is wrong."""

from __future__ import annotations

import copy
import pickle
import random
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.report.examples import samples
from pipeline.clean.report.render import COLUMNS, LINES, shown, table, to_json, warnings
from pipeline.clean.report.report import Report, RuleTally, check
from pipeline.clean.rule import Effect, Seen
from pipeline.clean.rules import characters, quotes
from pipeline.clean.rules import punctuation as marks
from pipeline.clean.rules import whitespace as spaces
from pipeline.clean.utf16 import Codes, codes, join, text_of
from pipeline.errors import InternalError

BOOK = "话说大宋。林冲道：“𠮷人㦸下！”\n史进走了，𤣥德来。"


def report_of(*texts: str, name: str = "book.txt", effects: dict[str, Effect] | None = None) -> Report:
    """What a worker counts of texts that no rule changed, or that these changed."""
    made, effects = Report(), effects or {}
    out = sum(map(len, texts))
    came = out + sum(effect.removed - effect.added for effect in effects.values())
    made.follow(came, effects, out)
    made.documents = len(texts)
    file = made.file(name)
    file.encoding, file.bytes, file.documents = "utf-8", came * 3, len(texts)
    file.measure(made.measure(join(texts)))
    lines = [line for text in texts for line in text.split("\n")]
    made.sentences.measure(np.array([*map(len, lines)]), np.array([len(line.encode()) for line in lines]))
    return made


def plain(report: Report) -> Any:
    return msgspec.json.decode(msgspec.json.encode(to_json(report)))


TEXTS = st.lists(st.text(st.sampled_from("水浒传𠮷𤣥𪛖□a ，。！？“”\n"), max_size=20), min_size=1, max_size=6)


@given(TEXTS)
def test_the_characters_are_those_of_the_texts_beyond_the_first_plane_too(texts: list[str]) -> None:
    made = report_of(*texts)
    assert made.characters == Counter("".join(texts))
    assert made.out == len("".join(texts))
    check(made)


@given(TEXTS)
def test_a_file_counts_its_han_characters_and_the_marks_that_end_sentences(texts: list[str]) -> None:
    file, text = report_of(*texts).files["book.txt"], "".join(texts)
    assert file.characters == len(text)
    assert file.han == sum(text.count(each) for each in "水浒传𠮷𤣥𪛖")
    assert file.ends == sum(text.count(each) for each in "。！？")


@given(TEXTS, st.randoms(use_true_random=False))
def test_workers_may_come_in_any_order_and_in_any_number(texts: list[str], dice: random.Random) -> None:
    def effects() -> dict[str, Effect]:
        return {"spaces": Effect(2, 0, Counter(space=2)), "marks": Effect()}

    parts = [report_of(text, effects=effects(), name=f"{len(text) % 2}.txt") for text in texts]
    for number, part in enumerate(parts):
        part.files[next(iter(part.files))].numbers["第N回"] = {number: 1}
        part.drop("too-short", 1, 1)
        part.came += 1
        part.duplicates, part.reopened, part.orphans, part.unheaded = number, 1, 2, 3
        part.sentences.resplit, part.sentences.unterminated = {"；": number}, 1
    whole, shuffled = Report(), Report()
    for part in copy.deepcopy(parts):
        whole.add(part)
    dice.shuffle(parts)
    for part in parts:
        shuffled.add(pickle.loads(pickle.dumps(part)))
    assert plain(whole) == plain(shuffled)
    assert table(whole) == table(shuffled)
    check(whole)
    assert to_json(whole)["documents"]["in"] == 2 * len(texts)
    assert whole.rules["spaces"].removed == 2 * len(texts)


def test_adding_leaves_what_was_added_as_it_was() -> None:
    part, whole = report_of(BOOK, effects={"spaces": Effect(removed=1, seen=Counter(space=1))}), Report()
    before = plain(part)
    whole.add(part)
    whole.add(part)
    assert plain(part) == before


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
@example([1, 2], 0.5)
def test_a_percentile_is_the_least_length_that_as_many_do_not_exceed(lengths: list[int], share: float) -> None:
    made = Report()
    for part in (lengths[::2], lengths[1::2]):
        made.sentences.measure(np.array(part, int), np.array(part, int) * 3)
    ranked = sorted(lengths)
    reached = next(length for place, length in enumerate(ranked, start=1) if place >= share * len(ranked))
    assert made.sentences.percentile(share) == reached
    assert made.sentences.count == len(lengths)
    assert made.sentences.longest == 3 * max(lengths)


# The ledger


def test_the_rules_of_a_page_lead_from_what_came_to_what_is_left() -> None:
    made = Report()
    effects = {"controls": Effect(removed=3), "gaiji": Effect(removed=2, added=1), "marks": Effect()}
    made.follow(100, effects, 96)
    assert made.rules["controls"] == RuleTally(100, 3, 0, 97)
    assert made.rules["gaiji"] == RuleTally(97, 2, 1, 96)
    assert made.rules["marks"] == RuleTally(96, 0, 0, 96)


def test_a_rule_that_miscounts_is_found_on_its_page() -> None:
    with pytest.raises(InternalError, match="leave 97 characters, but the page has 96"):
        Report().follow(100, {"controls": Effect(removed=3)}, 96)


def test_what_went_uncounted_stops_the_cleaning() -> None:
    made = report_of(BOOK)
    made.drop("too-short", 1, 5)
    with pytest.raises(InternalError, match="characters does not add up"):
        check(made)  # these were not in what was read
    made.came += 5
    check(made)
    made.came -= 1
    with pytest.raises(InternalError, match="characters does not add up"):
        check(made)


def test_a_rule_and_a_histogram_that_do_not_add_up_are_named() -> None:
    made = report_of(BOOK, effects={"spaces": Effect(removed=2)})
    made.rules["spaces"].out -= 1
    with pytest.raises(InternalError, match="the rule spaces does not add up"):
        check(made)
    made = report_of(BOOK)
    made.histograms[0][1][0] += 1
    with pytest.raises(InternalError, match="the histogram does not add up"):
        check(made)


# report.json


def test_the_json_depends_on_the_counts_alone_and_has_the_keys_that_are_documented() -> None:
    made = report_of(BOOK, effects={"spaces": Effect(removed=1, seen=Counter({"space": 1, "tab": 0}))})
    found = to_json(made)
    documented = re.findall(r"(?m)^    (\w+) {2,}\w", to_json.__doc__ or "")
    assert list(found) == ["schema", *documented]
    assert found["rules"] == [
        {"name": "spaces", "in": len(BOOK) + 1, "removed": 1, "added": 0, "out": len(BOOK), "seen": {"space": 1}}
    ]
    assert found["characters"]["histogram"]["𠮷"] == 1
    assert found["sentences"]["lengths"] == {"9": 1, "16": 1}
    assert found["tokenizer"]["normalization_rule_name"] == "identity"
    assert plain(made) == found  # it is plain data, with keys that are text


def chapters(report: Report, name: str, numbers: list[int], pattern: str = "第N回") -> None:
    report.headings[pattern] = report.headings.get(pattern, 0) + len(numbers)
    report.file(name).numbers[pattern] = dict(Counter(numbers))


def test_chapters_without_a_gap_are_said_to_be_so() -> None:
    made = report_of(BOOK)
    chapters(made, "book.txt", [*range(1, 162)], "第N段")
    (series,) = to_json(made)["headings"]["series"]
    assert series == {"file": "book.txt", "pattern": "第N段", "first": 1, "last": 161, "missing": [], "repeated": []}
    assert to_json(made)["headings"]["patterns"] == {"第N段": 161}
    assert not any("chapters" in each for each in warnings(made))


def test_missing_and_repeated_chapters_are_listed() -> None:
    made = report_of(BOOK)
    chapters(made, "book.txt", [1, 2, 4, 4, 9])
    (series,) = to_json(made)["headings"]["series"]
    assert (series["missing"], series["repeated"]) == (["3", "5-8"], [4])
    assert "chapters 第N回 1 to 9 of book.txt: missing 3, 5-8, repeated 4" in warnings(made)


def test_a_number_that_is_no_chapter_costs_neither_time_nor_room() -> None:
    made = report_of(BOOK)
    chapters(made, "book.txt", [1, 10**12, *range(100, 5_000, 2)])
    start = time.perf_counter()
    (series,) = to_json(made)["headings"]["series"]
    assert time.perf_counter() - start < 1
    assert len(series["missing"]) == 100


def test_files_of_one_chapter_each_are_one_book_and_two_books_are_two() -> None:
    made = report_of(BOOK)
    for number in (1, 2, 4):
        chapters(made, f"{number}.txt", [number])
    chapters(made, "one.txt", [1, 2])
    chapters(made, "other.txt", [1, 2])
    found = {each["file"]: each["missing"] for each in to_json(made)["headings"]["series"]}
    assert found == {"": ["3"], "one.txt": [], "other.txt": []}
    assert any("of all files: missing 3" in each for each in warnings(made))


# What a person should look at


def test_a_text_without_punctuation_is_said_loudly() -> None:
    made = report_of("余乆擬西南遊遷延未果" * 20)
    assert made.files["book.txt"].is_unpunctuated
    assert any(each.startswith("NO PUNCTUATION in 1 of 1 files (book.txt)") for each in warnings(made))
    assert any("NO PUNCTUATION" in line for line in table(made))
    assert to_json(made)["files"][0]["unpunctuated"]


@pytest.mark.parametrize("text", [BOOK * 5, "余乆擬西南遊"])
def test_a_punctuated_text_and_a_title_alone_are_not(text: str) -> None:
    assert not warnings(report_of(text))


def test_a_text_that_is_not_chinese_under_a_chinese_profile_is_said_loudly() -> None:
    english = "It was the best of times, it was the worst of times." * 5
    assert any(each.startswith("NOT CHINESE, 0% Han, in 1 of 1 files") for each in warnings(report_of(english)))
    made = report_of(english)
    made.file("book.txt").chinese = False
    assert not warnings(made)


def test_the_real_texts_are_punctuated_chinese(shared: Path) -> None:
    for name in ("shuihu_raw.txt", "song_ci.txt"):
        text = (shared / "data" / name).read_text(encoding="utf-8-sig")
        assert not warnings(report_of(text, name=name))
        bare = re.sub("[。！？]", "", text)
        assert any("NO PUNCTUATION" in each for each in warnings(report_of(bare, name=name)))


# The table


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in line)


def crowded() -> Report:
    """A report in which everything happened, with long names."""
    seen = {f"{'很长的说明' * 5}{number}": 10**9 + number for number in range(50)}
    effects = {f"rule-{number}": Effect(removed=1, seen=Counter(seen)) for number in range(24)}
    made = report_of(BOOK, "无标点的文字" * 40, name="一本书" * 60 + ".txt", effects=effects)
    made.add(report_of("x" * 100, "无标点的文字" * 40, name="二\n.txt"))
    for number in range(30):
        chapters(made, f"{number}.txt", [1, 3, 5, 5, 7, 9, 11, 13, 15, 17, 19, 21])
        made.drop(f"reason-{number}", 1, 1)
        made.headings[f"楔子{number}"] = 1
        made.sentences.resplit[f"where-{number}"] = 5
    made.came += 30
    made.sentences.over = made.sentences.unterminated = made.reopened = made.orphans = made.duplicates = 1
    return made


def test_the_table_fits_on_one_screen_whatever_happened() -> None:
    made = crowded()
    check(made)
    lines = table(made)
    assert len(lines) == LINES == 24
    assert max(map(columns, lines)) <= COLUMNS == 110
    assert not any("\n" in line for line in lines)
    assert any("more rules" in line for line in lines)
    assert lines[-1].endswith(f"--vocab_size={to_json(made)['tokenizer']['vocab_size']}")


def test_the_table_shows_only_rules_that_did_something_with_what_they_met_most() -> None:
    seen = Counter({"，， → ，": 1, "、、 → 、": 40, "。。 → 。": 3, "-- → ——": 0, "... → ……": 2})
    effects = {"controls": Effect(), "marks": Effect(removed=46, seen=seen), "quotes": Effect(seen=Counter())}
    lines = table(report_of(BOOK, effects=effects))
    (row,) = [line for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert row.split(maxsplit=2) == ["marks", "−46", "、、 → 、 40; 。。 → 。 3; ... → …… 2"]


def test_the_table_names_encodings_documents_units_and_faults() -> None:
    made = report_of(BOOK, "林冲。")
    made.add(report_of("王伦！", name="other.txt"))
    made.file("other.txt").encoding = "gb18030"
    made.drop("empty", 2, 0)
    made.reopened, made.orphans, made.duplicates = 53, 33, 1
    made.sentences.resplit = {"；": 4}
    text = "\n".join(table(made))
    for said in (
        "2 (1 gb18030, 1 utf-8)",
        "5 → 3 (dropped: empty 2; duplicates: 1)",
        "4; characters: p50 3, p95 16, p99 16, max 16; longest 49 bytes",
        "“ not closed 53, ” not opened 33, split at ； 4",
        "--normalization_rule_name=identity",
    ):
        assert said in text


def test_a_report_that_was_published_gives_the_same_table() -> None:
    assert shown(plain(crowded())) == table(crowded())


def test_an_empty_report_is_a_table_too() -> None:
    assert len(table(Report())) <= LINES
    check(Report())
    assert to_json(Report())["sentences"]["characters"] == {"p50": 0, "p95": 0, "p99": 0, "max": 0}


# Samples


def by(apply: Callable[[Codes, Seen], Codes]) -> Callable[[str], str]:
    return lambda text: text_of(apply(codes(text), Counter()))


CHANGES: dict[str, Callable[[str], str]] = {
    "controls": lambda text: text_of(characters.normalise(codes(text))[0]),
    "widen": by(marks.WIDEN.apply),
    "quotes": by(quotes.RULE.apply),
    "spaces": by(spaces.RULE.apply),
    "once": by(marks.COLLAPSE.apply),
    "replaced": lambda text: text.replace("，", "、"),
    "lines joined": lambda text: text.replace("\n", ""),
    "headings": lambda text: re.sub("(?m)^.*?第[^段]+段  ", "", text),
    "a chapter lost": lambda text: text[:1000] + text[60_000:],
    "a chapter put in": lambda text: text[:1000] + "甲乙丙" * 5000 + text[1000:],
    "everything": lambda text: "",
}


@pytest.mark.parametrize("change", CHANGES)
def test_samples_show_what_a_rule_did_to_a_real_book_in_a_moment(shared: Path, change: str) -> None:
    before = (shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8")
    after = CHANGES[change](before)
    start = time.perf_counter()
    found = samples(before, after)
    assert time.perf_counter() - start < 3
    assert 1 <= len(found) <= 10
    for old, new in found:
        assert old != new
        assert len(old) < 100
        assert len(new) < 100
        assert all(part in before for part in stretches(old))
        assert all(part in after for part in stretches(new))


def stretches(excerpt: str) -> list[str]:
    """The parts of a text that an excerpt shows."""
    escapes = re.compile(r"\\(?:u[0-9a-f]{4}|x[0-9a-f]{2}|n|t)")
    return escapes.sub(lambda found: found[0].encode().decode("unicode_escape"), excerpt).split("…")


def test_each_change_of_a_line_is_shown_with_what_stands_around_it() -> None:
    before = '说道："大相国寺仰委管菜园僧人鲁智深，搅扰。"那和尚'
    after = "说道：“大相国寺仰委管菜园僧人鲁智深，搅扰。”那和尚"
    assert samples(before, after) == [
        ('说道："大相国寺仰委管菜园僧人鲁', "说道：“大相国寺仰委管菜园僧人鲁"),
        ('管菜园僧人鲁智深，搅扰。"那和尚', "管菜园僧人鲁智深，搅扰。”那和尚"),
    ]


def test_what_cannot_be_seen_is_escaped() -> None:
    assert samples("林\u200b冲\u3000道", "林冲道") == [("林\\u200b冲\\u3000道", "林冲道")]
    assert samples("林冲\n道", "林冲道") == [("林冲\\n道", "林冲道")]
    assert samples("肐\ue10e地", "肐□地") == [("肐\\ue10e地", "肐□地")]


def test_each_kind_of_change_comes_before_one_is_shown_twice() -> None:
    before = "，".join(f"第{number}个人在这里说了一句话" for number in range(1000, 1040)) + "。又走了一段很远的路。。"
    after = before.replace("，", "、").replace("。。", "。")
    (first, last) = samples(before, after, most=2)
    assert first == ("00个人在这里说了一句话，第1001个人在这里说了", "00个人在这里说了一句话、第1001个人在这里说了")
    assert last == ("话。又走了一段很远的路。。", "话。又走了一段很远的路。")
    assert len(samples(before, after)) == 10


def test_an_excerpt_does_not_reach_into_the_next_document() -> None:
    assert samples("前文\0林冲,去\0后文", "前文\0林冲，去\0后文") == [("林冲,去", "林冲，去")]


def test_equal_texts_have_no_samples() -> None:
    assert samples(BOOK, BOOK) == []
    assert samples("", "") == []


@given(st.text("水浒传，。\n\0", max_size=60), st.text("水浒传，。\n\0", max_size=60))
@example("水，水", "水水")
@example("\0" * 20, "\0" * 9)
def test_there_are_samples_where_there_is_a_difference(before: str, after: str) -> None:
    assert bool(samples(before, after)) == (before != after)


@given(st.text("水浒传，。\n", max_size=80), st.sets(st.integers(0, 79)))
def test_each_sample_is_found_in_its_text_and_none_is_shown_twice(text: str, places: set[int]) -> None:
    after = "".join(each for place, each in enumerate(text) if place not in places)
    found = samples(text, after, most=1000)
    assert len({*found}) == len(found)
    for old, new in found:
        assert all(part in text for part in stretches(old))
        assert all(part in after for part in stretches(new))


def test_guesses_of_traditional_script_are_told_with_their_numbers() -> None:
    seen: Seen = Counter({"发 → 發": 3, "龙 → 龍": 9})
    made = report_of(BOOK, effects={"script": Effect(seen=seen)})
    (told,) = [line for line in warnings(made) if "GUESS" in line]
    assert "发 → 發 3" in told
    assert "龙" not in told
