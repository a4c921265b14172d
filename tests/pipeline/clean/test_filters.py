"""Filters: documents that are not text are rejected with a reason, as by a slow reference."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.filters import DEFAULT, REASONS, Filter, reject_reasons
from pipeline.clean.utf16 import join_documents
from pipeline.errors import BadConfig

HTTP_HEADER = "中国诗歌库 {Connection=[close],Content-Type=[text/html;charset=gb2312],Server=[Microsoft-IIS/6.0]}"


def reason_of(text: str, requirements: Filter = DEFAULT) -> str:
    [reason] = reject_reasons(join_documents([text]), requirements)
    return reason


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
        ("国破山河在，城春□□□。", ""),
        (HTTP_HEADER, "few-han"),
        ("他说 hello", "few-han"),
        ("他说了 hi", ""),
        ("能ㄋ嗽ホホ然笑挽", "mojibake"),
        ("倚杖け然长啸，不知何处是他乡，明朝又是孤舟别。", ""),
        ("林\ufffd冲\ufffd", "mojibake"),
        ("\ue000\ue001\ue002地", ""),
    ],
)
def test_document_is_rejected_with_a_reason(text: str, reason: str) -> None:
    assert reason_of(text) == reason


@pytest.mark.parametrize("text", ["Hello, world!", HTTP_HEADER, "3.14", "ホホ", "□"])
def test_non_chinese_source_may_be_in_any_script(text: str) -> None:
    assert reason_of(text, Filter(chinese=False, min_han=None)) == ""
    assert reason_of("  ", Filter(chinese=False, min_han=None)) == "empty"


def test_least_fraction_of_han_holds_for_every_source() -> None:
    assert reason_of("Hello, world!", Filter(chinese=False)) == "no-han"
    assert reason_of("他说 hello", Filter(chinese=False)) == "few-han"


def test_without_a_least_fraction_of_han_only_text_without_letters_is_rejected() -> None:
    assert [reason_of(text, Filter(min_han=None)) for text in ("Hello", "他说 hello", "……", "□□", "3.14")] == [
        *("", "", "no-han", "no-han", "no-han")
    ]


def test_caller_sets_the_thresholds() -> None:
    assert reason_of(HTTP_HEADER, Filter(min_han=0)) == ""
    assert reason_of("他说了 hi", Filter(min_han=0.9)) == "few-han"
    assert reason_of("国破山河在，城春□□□。", Filter(max_lacunae=0.1)) == "lacunae"
    assert reason_of("能ㄋ嗽ホホ然笑挽", Filter(max_mojibake=1)) == ""
    assert reason_of("好。！", Filter(min_chars=2)) == "too-short"
    assert reason_of("好人。", Filter(min_chars=2)) == ""


@pytest.mark.parametrize("threshold", [{"min_han": 1.5}, {"max_lacunae": -0.1}, {"max_mojibake": 2}, {"min_chars": -1}])
def test_threshold_out_of_range_raises_bad_config(threshold: dict[str, float]) -> None:
    with pytest.raises(BadConfig, match=next(iter(threshold))):
        Filter(**threshold)  # type: ignore[arg-type]


def slow_reason(text: str, requirements: Filter) -> str:
    """Slow reference of `reject_reasons` for one document, character by character."""
    visible = [c for c in text if not c.isspace()]
    han = [c for c in visible if "\u3400" <= c <= "\u4dbf" or "\u4e00" <= c <= "\u9fff" or "\uf900" <= c <= "\ufaff"]
    han += [c for c in visible if "\U00020000" <= c <= "\U0003ffff" or c == "〇"]
    letters = [c for c in visible if c not in han and c < "\U00010000" and c.isalpha()]
    lacunae = [c for c in visible if c == "□"]
    blocks = (
        *("\u0080\u009f", "\u2500\u257f", "\uff61\uff9f", "\u3041\u30ff"),
        *("\u3105\u312f", "\u0400\u04ff", "\ufffd\ufffd"),
    )
    mojibake = [c for c in visible if any(block[0] <= c <= block[1] for block in blocks)]
    if not visible:
        return "empty"
    if len([c for c in visible if c not in "。！？"]) < requirements.min_chars:
        return "too-short"
    if requirements.min_han and not han:
        return "no-han"
    if requirements.chinese:
        if requirements.min_han is None and not han and not letters:
            return "no-han"
        if len(lacunae) > requirements.max_lacunae * (len(han) + len(lacunae)):
            return "lacunae"
        if len(mojibake) > requirements.max_mojibake * len(visible):
            return "mojibake"
    if len(han) < (requirements.min_han or 0) * (len(han) + len(letters)):
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
    st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
)


@given(st.lists(TEXT, min_size=1, max_size=6), FILTER)
def test_page_is_filtered_as_by_the_slow_reference(texts: list[str], requirements: Filter) -> None:
    reasons = reject_reasons(join_documents(texts), requirements)
    assert reasons == [slow_reason(text, requirements) for text in texts]
    assert reasons == [reason_of(text, requirements) for text in texts]
    assert set(reasons) <= {"", *REASONS}


@given(st.lists(TEXT, min_size=1, max_size=3), FILTER)
def test_long_documents_are_filtered_as_by_the_slow_reference(texts: list[str], requirements: Filter) -> None:
    texts = [text * 200 for text in texts]
    assert reject_reasons(join_documents(texts), requirements) == [slow_reason(text, requirements) for text in texts]


@given(TEXT)
def test_filter_without_limits_keeps_all_that_the_default_keeps(text: str) -> None:
    unlimited = Filter(min_chars=0, min_han=0, max_lacunae=1, max_mojibake=1)
    assert reason_of(text) or not reason_of(text, unlimited)


def test_empty_page_is_one_empty_document() -> None:
    assert reject_reasons(join_documents([])) == ["empty"]
    assert reject_reasons(join_documents(["", "林冲", ""])) == ["empty", "", "empty"]


def test_only_poems_with_lacunae_or_without_text_are_rejected(shared: Path) -> None:
    with zstandard.open(shared / "data/tang_poems.jsonl.zst", "rb") as file:
        poems = [json.loads(line)["text"] for line in io.TextIOWrapper(file, encoding="utf-8")]
    reasons = reject_reasons(join_documents(poems))
    assert len(reasons) == len(poems) == 57_603
    assert Counter(reasons) == {"": 57_430, "too-short": 155, "lacunae": 18}
    assert {poem for poem, reason in zip(poems, reasons, strict=True) if reason == "too-short"} == {"\n。"}
    assert [slow_reason(poem, DEFAULT) for poem in poems[::50]] == reasons[::50]
