"""The report: counts add up, the check finds faults, and the table fits on a screen."""

from __future__ import annotations

import copy
import pickle
import random
import re
import time
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.report.problems import warnings
from pipeline.clean.report.render import COLUMNS, LINES, table, table_from_json, to_json
from pipeline.clean.report.report import CleaningReport, FileCounts, RuleTally, check_balance
from pipeline.clean.rule import Counts, Effect
from pipeline.clean.rules import unwrap
from pipeline.clean.utf16 import join_documents
from pipeline.errors import InternalError

BOOK = "话说大宋。林冲道：“𠮷人㦸下！”\n史进走了，𤣥德来。"


def report_of(
    *texts: str, name: str = "book.txt", effects: dict[str, Effect] | None = None, profile: str = "plain"
) -> CleaningReport:
    """The report of a worker on these texts, after these effects of rules."""
    report, effects = CleaningReport(), effects or {}
    out = sum(map(len, texts))
    characters_in = out + sum(effect.removed - effect.added for effect in effects.values())
    report.add_effects(characters_in, effects, out)
    report.documents = len(texts)
    file = report.file(name)
    file.encoding, file.bytes = "utf-8", characters_in * 3
    file.add_documents(len(texts), profile)
    file.add_text(report.add_text(join_documents(texts)), profile)
    lines = [line for text in texts for line in text.split("\n")]
    report.sentences.add_lines(np.array([*map(len, lines)]), np.array([len(line.encode()) for line in lines]))
    return report


def plain(report: CleaningReport) -> Any:
    return msgspec.json.decode(msgspec.json.encode(to_json(report)))


TEXTS = st.lists(st.text(st.sampled_from("水浒传𠮷𤣥𪛖□a ，。！？“”\n"), max_size=20), min_size=1, max_size=6)


@given(TEXTS)
def test_characters_are_counted_in_and_beyond_the_first_plane(texts: list[str]) -> None:
    report = report_of(*texts)
    assert report.characters == Counter("".join(texts))
    assert report.characters_out == len("".join(texts))
    check_balance(report)


@given(TEXTS)
def test_file_counts_han_characters_and_sentence_ends(texts: list[str]) -> None:
    file, text = report_of(*texts).files["book.txt"], "".join(texts)
    assert file.characters == len(text)
    assert file.han == sum(text.count(character) for character in "水浒传𠮷𤣥𪛖")
    assert file.sentence_ends == sum(text.count(character) for character in "。！？")


@given(TEXTS, st.randoms(use_true_random=False))
def test_reports_add_up_in_any_order(texts: list[str], rng: random.Random) -> None:
    def effects() -> dict[str, Effect]:
        return {"spaces": Effect(2, 0, Counter(space=2)), "marks": Effect()}

    parts = [report_of(text, effects=effects(), name=f"{len(text) % 2}.txt") for text in texts]
    for number, part in enumerate(parts):
        part.files[next(iter(part.files))].numbers["第N回"] = {number: 1}
        part.drop("too-short", 1, 1)
        part.characters_in += 1
        part.duplicates, part.reopened_quotes, part.orphan_quotes, part.lines_without_heading = number, 1, 2, 3
        part.sentences.cuts, part.sentences.unterminated = {"；": number}, 1
    total, shuffled = CleaningReport(), CleaningReport()
    for part in copy.deepcopy(parts):
        total.add(part)
    rng.shuffle(parts)
    for part in parts:
        shuffled.add(pickle.loads(pickle.dumps(part)))
    assert plain(total) == plain(shuffled)
    assert table(total) == table(shuffled)
    check_balance(total)
    assert to_json(total)["documents"]["in"] == 2 * len(texts)
    assert total.rules["spaces"].removed == 2 * len(texts)


def test_adding_does_not_change_the_added_report() -> None:
    part, total = report_of(BOOK, effects={"spaces": Effect(removed=1, counts=Counter(space=1))}), CleaningReport()
    before = plain(part)
    total.add(part)
    total.add(part)
    assert plain(part) == before


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
@example([1, 2], 0.5)
def test_percentile_is_the_smallest_length_not_exceeded(lengths: list[int], fraction: float) -> None:
    report = CleaningReport()
    for part in (lengths[::2], lengths[1::2]):
        report.sentences.add_lines(np.array(part, int), np.array(part, int) * 3)
    ranked = sorted(lengths)
    expected = next(length for rank, length in enumerate(ranked, start=1) if rank >= fraction * len(ranked))
    assert report.sentences.percentile(fraction) == expected
    assert report.sentences.count == len(lengths)
    assert report.sentences.longest_bytes == 3 * max(lengths)


# The ledger


def test_rule_tallies_chain_from_input_to_output() -> None:
    report = CleaningReport()
    effects = {"controls": Effect(removed=3), "gaiji": Effect(removed=2, added=1), "marks": Effect()}
    report.add_effects(100, effects, 96)
    assert report.rules["controls"] == RuleTally(100, 3, 0, 97)
    assert report.rules["gaiji"] == RuleTally(97, 2, 1, 96)
    assert report.rules["marks"] == RuleTally(96, 0, 0, 96)


def test_rule_that_miscounts_raises() -> None:
    with pytest.raises(InternalError, match="leave 97 characters, but the page has 96"):
        CleaningReport().add_effects(100, {"controls": Effect(removed=3)}, 96)


def test_uncounted_characters_raise() -> None:
    report = report_of(BOOK)
    report.drop("too-short", 1, 5)
    with pytest.raises(InternalError, match="characters does not add up"):
        check_balance(report)  # these characters were never read
    report.characters_in += 5
    check_balance(report)
    report.characters_in -= 1
    with pytest.raises(InternalError, match="characters does not add up"):
        check_balance(report)


def test_inconsistent_rule_and_histogram_raise() -> None:
    report = report_of(BOOK, effects={"spaces": Effect(removed=2)})
    report.rules["spaces"].characters_out -= 1
    with pytest.raises(InternalError, match="the rule spaces does not add up"):
        check_balance(report)
    report = report_of(BOOK)
    report.histograms[0][1][0] += 1
    with pytest.raises(InternalError, match="the histogram does not add up"):
        check_balance(report)


# report.json


def test_json_is_plain_data_with_the_documented_keys() -> None:
    report = report_of(BOOK, effects={"spaces": Effect(removed=1, counts=Counter({"space": 1, "tab": 0}))})
    assert not {"near_pairs", "held_out", "examples"} & to_json(report).keys()
    report.near_pairs, report.held_out = {"compared": 2}, {"documents": 1}
    report.add_examples("contaminated", [{"line": line} for line in range(9)])
    data = to_json(report)
    assert data["examples"] == {"contaminated": [{"line": line} for line in range(5)]}
    documented = re.findall(r"(?m)^    (\w+) {2,}\w", to_json.__doc__ or "")
    assert list(data) == ["schema", *documented]
    assert data["rules"] == [
        {"name": "spaces", "in": len(BOOK) + 1, "removed": 1, "added": 0, "out": len(BOOK), "seen": {"space": 1}}
    ]
    assert data["characters"]["histogram"]["𠮷"] == 1
    assert data["sentences"]["lengths"] == {"9": 1, "16": 1}
    assert data["tokenizer"]["normalization_rule_name"] == "identity"
    assert plain(report) == data  # plain data, with strings as keys


def chapters(report: CleaningReport, name: str, numbers: list[int], pattern: str = "第N回") -> None:
    report.headings[pattern] = report.headings.get(pattern, 0) + len(numbers)
    report.file(name).numbers[pattern] = dict(Counter(numbers))


def test_chapters_without_gaps_give_no_warning() -> None:
    report = report_of(BOOK)
    chapters(report, "book.txt", [*range(1, 162)], "第N段")
    (series,) = to_json(report)["headings"]["series"]
    assert series == {"file": "book.txt", "pattern": "第N段", "first": 1, "last": 161, "missing": [], "repeated": []}
    assert to_json(report)["headings"]["patterns"] == {"第N段": 161}
    assert not any("chapters" in text for text in warnings(report))


def test_missing_and_repeated_chapters_are_listed() -> None:
    report = report_of(BOOK)
    chapters(report, "book.txt", [1, 2, 4, 4, 9])
    (series,) = to_json(report)["headings"]["series"]
    assert (series["missing"], series["repeated"]) == (["3", "5-8"], [4])
    assert "chapters 第N回 1 to 9 of book.txt: missing 3, 5-8, repeated 4" in warnings(report)


def test_huge_chapter_number_costs_neither_time_nor_space() -> None:
    report = report_of(BOOK)
    chapters(report, "book.txt", [1, 10**12, *range(100, 5_000, 2)])
    start = time.perf_counter()
    (series,) = to_json(report)["headings"]["series"]
    assert time.perf_counter() - start < 1
    assert len(series["missing"]) == 100


def test_files_of_one_chapter_each_are_one_series() -> None:
    report = report_of(BOOK)
    for number in (1, 2, 4):
        chapters(report, f"{number}.txt", [number])
    chapters(report, "one.txt", [1, 2])
    chapters(report, "other.txt", [1, 2])
    missing = {series["file"]: series["missing"] for series in to_json(report)["headings"]["series"]}
    assert missing == {"": ["3"], "one.txt": [], "other.txt": []}
    assert any("of all files: missing 3" in text for text in warnings(report))


# Warnings


def test_text_without_punctuation_gives_a_warning() -> None:
    report = report_of("余乆擬西南遊遷延未果" * 20)
    assert report.files["book.txt"].is_unpunctuated
    assert any(text.startswith("NO PUNCTUATION in 1 of 1 files (book.txt)") for text in warnings(report))
    assert any("NO PUNCTUATION" in line for line in table(report))
    assert to_json(report)["files"][0]["unpunctuated"]


@pytest.mark.parametrize("text", [BOOK * 5, "余乆擬西南遊", "2024-03-01 10:00 王芳：好。\n" * 20])
def test_punctuated_text_and_short_text_give_no_warning(text: str) -> None:
    assert not warnings(report_of(text))


def test_foreign_text_in_a_chinese_profile_gives_a_warning() -> None:
    english = "It was the best of times, it was the worst of times." * 5
    texts = " ".join(warnings(report_of(english, name="a/b.txt")))
    assert "NOT CHINESE: 0% of the letters are Han in 1 of 1 files (b.txt)" in texts


def test_tags_in_published_text_give_a_warning() -> None:
    report = report_of(BOOK * 5)
    report.files["book.txt"].tags = 3
    report.files["book.txt"].add(FileCounts("book.txt", tags=1))
    (warning,) = warnings(report)
    assert warning == "MARKUP, 30.8 tags per 1,000 characters, in 1 of 1 files (book.txt): --profile html?"
    report.files["book.txt"].tags = 2
    assert not warnings(report)
    report.files["book.txt"].tags, report.files["book.txt"].characters = 9, 100_000
    assert not report.files["book.txt"].has_markup


def test_real_texts_are_punctuated_chinese(shared: Path) -> None:
    for name in ("shuihu_raw.txt", "song_ci.txt"):
        text = (shared / "data" / name).read_text(encoding="utf-8-sig")
        assert not warnings(report_of(text, name=name))
        bare = re.sub("[。！？]", "", text)
        assert any("NO PUNCTUATION" in text for text in warnings(report_of(bare, name=name)))


SIMPLE_LINES, FULL_LINES = "风来无声，时见归人。长安诗书。" * 5, "風來無聲，時見歸人。長安詩書。" * 2


def test_both_scripts_in_one_text_give_a_warning_with_their_shares() -> None:
    (warning,) = warnings(report_of(SIMPLE_LINES, FULL_LINES))
    assert warning == "MIXED SCRIPTS, 71% simplified, 29% traditional characters: --script simplified?"


def test_files_of_the_other_script_are_named() -> None:
    report = report_of(SIMPLE_LINES * 3, name="a.txt")
    report.add(report_of(FULL_LINES * 3, name="b.txt"))
    (warning,) = warnings(report)
    assert warning.endswith("--script simplified?; traditional: 1 of 2 files (b.txt)")
    assert any("MIXED SCRIPTS" in line for line in table(report))


@pytest.mark.parametrize("text", [SIMPLE_LINES * 4, FULL_LINES * 4, SIMPLE_LINES * 40 + "風來", "风來"])
def test_one_script_with_a_few_characters_of_the_other_gives_no_warning(text: str) -> None:
    assert not warnings(report_of(text))


def test_script_and_language_are_judged_in_chinese_text_only() -> None:
    assert not warnings(report_of(SIMPLE_LINES, FULL_LINES, "It was the best of times." * 5, profile="text"))


def test_guesses_of_traditional_script_give_a_warning() -> None:
    counts: Counts = Counter({"发 → 發": 3, "龙 → 龍": 9})
    report = report_of(BOOK, effects={"script": Effect(counts=counts)})
    (warning,) = [line for line in warnings(report) if "GUESS" in line]
    assert "发 → 發 3" in warning
    assert "龙" not in warning


# The table


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def crowded() -> CleaningReport:
    """A report with every kind of row, and long names."""
    counts = {f"{'很长的说明' * 5}{number}": 10**9 + number for number in range(50)}
    effects = {f"rule-{number}": Effect(removed=1, counts=Counter(counts)) for number in range(24)}
    report = report_of(BOOK, "无标点的文字" * 40, name="一本书" * 60 + ".txt", effects=effects)
    report.add(report_of("x" * 100, "无标点的文字" * 40, name="二\n.txt"))
    for number in range(30):
        chapters(report, f"{number}.txt", [1, 3, 5, 5, 7, 9, 11, 13, 15, 17, 19, 21])
        report.drop(f"reason-{number}", 1, 1)
        report.headings[f"楔子{number}"] = 1
        report.sentences.cuts[f"where-{number}"] = 5
    report.characters_in += 30
    report.sentences.over_default = report.sentences.unterminated = report.reopened_quotes = report.orphan_quotes = (
        report.duplicates
    ) = 1
    return report


def test_table_fits_on_one_screen() -> None:
    report = crowded()
    check_balance(report)
    lines = table(report)
    assert len(lines) == LINES == 24
    assert max(map(columns, lines)) <= COLUMNS == 110
    assert not any("\n" in line for line in lines)
    assert any("more rules" in line for line in lines)
    assert lines[-1].endswith(f"--vocab_size={to_json(report)['tokenizer']['vocab_size']}")


def test_table_shows_active_rules_with_their_most_frequent_cases() -> None:
    counts = Counter({"，， → ，": 1, "、、 → 、": 40, "。。 → 。": 3, "-- → ——": 0, "... → ……": 2})
    effects = {"controls": Effect(), "marks": Effect(removed=46, counts=counts), "quotes": Effect(counts=Counter())}
    lines = table(report_of(BOOK, effects=effects))
    (row,) = [line for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert row.split(maxsplit=2) == ["marks", "−46", "、、 → 、 40; 。。 → 。 3; ... → …… 2"]


def test_table_shows_encodings_documents_and_faults() -> None:
    report = report_of(BOOK, "林冲。")
    report.add(report_of("王伦！", name="other.txt"))
    report.file("other.txt").encoding = "gb18030"
    report.drop("empty", 2, 0)
    report.reopened_quotes, report.orphan_quotes, report.duplicates = 53, 33, 1
    report.sentences.cuts = {"；": 4}
    text = "\n".join(table(report))
    for fragment in (
        "2 (1 gb18030, 1 utf-8)",
        "5 → 3 (dropped: empty 2; duplicates: 1)",
        "4; characters: p50 3, p95 16, p99 16, max 16; longest 49 bytes",
        "“ not closed 53, ” not opened 33, split at ； 4",
        "--normalization_rule_name=identity",
    ):
        assert fragment in text


def test_shares_of_profiles_are_reported_unless_all_text_is_chinese() -> None:
    report = report_of(BOOK)
    assert not any(line.startswith("profiles") for line in table(report))
    report.add(report_of("a" * 96, profile="text"))
    report.add(report_of("b" * 71, name="other.txt", profile="text"))
    data = to_json(report)
    assert len(BOOK) == 26
    shares = {"text": {"documents": 2, "characters": 167}, "plain": {"documents": 1, "characters": 26}}
    assert data["profiles"] == shares
    assert list(data["profiles"]) == ["text", "plain"]
    assert [file["profile"] for file in data["files"]] == ["text, plain", "text"]
    assert data["files"][0]["profiles"]["text"] == {"documents": 1, "characters": 96}
    (row,) = [line for line in table(report) if line.startswith("profiles")]
    assert (
        row.split(maxsplit=1)[1]
        == "text 2 documents (86.5% of the characters), plain 1 document (13.5% of the characters)"
    )


def test_table_of_a_report_without_profiles_has_no_shares() -> None:
    data = plain(report_of("a" * 96, profile="text"))
    del data["profiles"]
    assert not any(line.startswith("profiles") for line in table_from_json(data))


def test_table_of_a_published_report_is_the_same() -> None:
    assert table_from_json(plain(crowded())) == table(crowded())


def test_empty_report_has_a_table() -> None:
    assert len(table(CleaningReport())) <= LINES
    check_balance(CleaningReport())
    assert to_json(CleaningReport())["sentences"]["characters"] == {"p50": 0, "p95": 0, "p99": 0, "max": 0}


def test_lines_that_seem_hard_wrapped_and_stay_give_a_warning() -> None:
    effects = {"unwrap": Effect(counts=Counter({"joins": 5, f"{unwrap.KEPT}33": 1}))}
    assert "HARD-WRAPPED at 33 characters: --unwrap?" in warnings(report_of("武陵人", effects=effects))
    effects["unwrap"].counts[f"{unwrap.KEPT}21"] = 4
    text = "HARD-WRAPPED at 21, 33 characters in 5 documents: --unwrap?"
    assert text in warnings(report_of("武陵人", effects=effects))
    assert not warnings(report_of("武陵人", effects={"unwrap": Effect(counts=Counter(joins=5))}))
