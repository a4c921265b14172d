"""Filters: what is no text is rejected with its reason, and the fast way over a page judges as a slow reading does."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.filters import DEFAULT, REASONS, Filter, verdict, verdicts
from pipeline.clean.utf16 import codes, join
from pipeline.errors import BadConfig

DEBRIS = "中国诗歌库 {Connection=[close],Content-Type=[text/html;charset=gb2312],Server=[Microsoft-IIS/6.0]}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("床前明月光，疑是地上霜。", ""),
        ("𤣥德，𠮷。", ""),
        ("〇", ""),
        ("", "empty"),
        (" \u3000\n", "empty"),
        ("……——", "no-han"),
        ("。！？", "too-short"),
        ("Hello, world!", "no-han"),
        ("3.14", "no-han"),
        ("□□□", "no-han"),
        ("□□，山河□□□在，城春□□□", "lacunae"),
        ("国破山河在，城春□□□。", "few-lacunae"),
        (DEBRIS, "few-han"),
        ("他说 hello", "few-han"),
        ("他说了 hi", ""),
        ("能ㄋ嗽ホホ然笑挽", "mojibake"),
        ("倚杖け然长啸，不知何处是他乡，明朝又是孤舟别。", ""),
        ("林\ufffd冲\ufffd", "mojibake"),
        ("\ue000\ue001\ue002地", ""),
    ],
)
def test_a_document_is_rejected_for_a_reason(text: str, reason: str) -> None:
    assert verdict(text) == ("" if reason == "few-lacunae" else reason)


@pytest.mark.parametrize("text", ["Hello, world!", DEBRIS, "3.14", "ホホ", "□"])
def test_sources_that_are_not_chinese_may_be_of_any_script(text: str) -> None:
    assert verdict(text, Filter(chinese=False)) == ""
    assert verdict("  ", Filter(chinese=False)) == "empty"


def test_thresholds_are_for_the_caller_to_set() -> None:
    assert verdict(DEBRIS, Filter(min_han=0)) == ""
    assert verdict("他说了 hi", Filter(min_han=0.9)) == "few-han"
    assert verdict("国破山河在，城春□□□。", Filter(max_lacunae=0.1)) == "lacunae"
    assert verdict("能ㄋ嗽ホホ然笑挽", Filter(max_mojibake=1)) == ""
    assert verdict("好。！", Filter(min_chars=2)) == "too-short"
    assert verdict("好人。", Filter(min_chars=2)) == ""


@pytest.mark.parametrize("wrong", [{"min_han": 1.5}, {"max_lacunae": -0.1}, {"max_mojibake": 2}, {"min_chars": -1}])
def test_a_threshold_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadConfig, match=next(iter(wrong))):
        Filter(**wrong)  # type: ignore[arg-type]


def slow(text: str, wanted: Filter) -> str:
    """One document, character by character."""
    solid = [c for c in text if not c.isspace()]
    han = [c for c in solid if "\u3400" <= c <= "\u4dbf" or "\u4e00" <= c <= "\u9fff" or "\uf900" <= c <= "\ufaff"]
    han += [c for c in solid if "\U00020000" <= c <= "\U0003ffff" or c == "〇"]
    letters = [c for c in solid if c not in han and c < "\U00010000" and c.isalpha()]
    lost = [c for c in solid if c == "□"]
    blocks = (
        "\u0080\u009f",
        "\u2500\u257f",
        "\uff61\uff9f",
        "\u3041\u30ff",
        "\u3105\u312f",
        "\u0400\u04ff",
        "\ufffd\ufffd",
    )
    wrong = [c for c in solid if any(block[0] <= c <= block[1] for block in blocks)]
    if not solid:
        return "empty"
    if len([c for c in solid if c not in "。！？"]) < wanted.min_chars:
        return "too-short"
    if not wanted.chinese:
        return ""
    if not han and wanted.min_han:
        return "no-han"
    if len(lost) > wanted.max_lacunae * (len(han) + len(lost)):
        return "lacunae"
    if len(wrong) > wanted.max_mojibake * len(solid):
        return "mojibake"
    if len(han) < wanted.min_han * (len(han) + len(letters)):
        return "few-han"
    return ""


PIECES = "林冲𤣥𠮷㦸豈〇□aZéж１ホㄋ｡ﾎ═\ufffd\x85\ue000😀𝐀0，。！？ \u3000\n"
TEXT = st.one_of(st.text(st.sampled_from(PIECES), max_size=20), st.text(max_size=12)).map(
    lambda text: text.replace("\0", "")
)
FILTER = st.builds(
    Filter,
    st.booleans(),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
)


@given(st.lists(TEXT, min_size=1, max_size=6), FILTER)
def test_a_page_is_judged_as_its_documents_are_one_by_one(texts: list[str], wanted: Filter) -> None:
    found = verdicts(join(texts), wanted)
    assert found == [slow(text, wanted) for text in texts]
    assert found == [verdict(text, wanted) for text in texts]
    assert set(found) <= {"", *REASONS}


@given(TEXT)
def test_a_filter_that_asks_for_less_rejects_no_more(text: str) -> None:
    easy = Filter(min_chars=0, min_han=0, max_lacunae=1, max_mojibake=1)
    assert verdict(text) or not verdict(text, easy)


def test_an_empty_page_is_one_empty_document() -> None:
    assert verdicts(codes("")) == ["empty"]
    assert verdicts(codes("\0林冲\0")) == ["empty", "", "empty"]


def test_of_the_poems_only_those_are_rejected_that_have_lacunae_or_no_text(shared: Path) -> None:
    with zstandard.open(shared / "data/tang_poems.jsonl.zst", "rb") as packed:
        poems = [json.loads(line)["text"] for line in io.TextIOWrapper(packed, encoding="utf-8")]
    found = verdicts(join(poems), DEFAULT)
    assert len(found) == len(poems) == 57_603
    assert Counter(found) == {"": 57_430, "too-short": 155, "lacunae": 18}
    assert {poem for poem, reason in zip(poems, found, strict=True) if reason == "too-short"} == {"\n。"}
    assert [slow(poem, DEFAULT) for poem in poems[::50]] == found[::50]
