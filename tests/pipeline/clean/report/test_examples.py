"""Examples: excerpts of the changes of a rule, found fast in texts of any size."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.report.examples import find_examples
from pipeline.clean.rule import Counts
from pipeline.clean.rules import characters, punctuation, quotes, whitespace
from pipeline.clean.utf16 import Utf16Text, decode_utf16, encode_utf16

BOOK = "话说大宋。林冲道：“𠮷人㦸下！”\n史进走了，𤣥德来。"


def on_text(apply: Callable[[Utf16Text, Counts], Utf16Text]) -> Callable[[str], str]:
    return lambda text: decode_utf16(apply(encode_utf16(text), Counter()))


CHANGES: dict[str, Callable[[str], str]] = {
    "controls": lambda text: decode_utf16(characters.normalise(encode_utf16(text))[0]),
    "widen": on_text(punctuation.WIDEN.apply),
    "quotes": on_text(quotes.CURL.apply),
    "spaces": on_text(whitespace.DELETE_SPACES.apply),
    "collapse": on_text(punctuation.COLLAPSE.apply),
    "replaced": lambda text: text.replace("，", "、"),
    "lines joined": lambda text: text.replace("\n", ""),
    "headings": lambda text: re.sub("(?m)^.*?第[^段]+段  ", "", text),
    "a chapter lost": lambda text: text[:1000] + text[60_000:],
    "a chapter inserted": lambda text: text[:1000] + "甲乙丙" * 5000 + text[1000:],
    "everything": lambda text: "",
}


@pytest.mark.parametrize("change", CHANGES)
def test_samples_of_a_real_book_are_short_and_fast(shared: Path, change: str) -> None:
    before = (shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8")
    after = CHANGES[change](before)
    start = time.perf_counter()
    excerpts = find_examples(before, after)
    assert time.perf_counter() - start < 3
    assert 1 <= len(excerpts) <= 10
    for old, new in excerpts:
        assert old != new
        assert len(old) < 100
        assert len(new) < 100
        assert all(part in before for part in stretches(old))
        assert all(part in after for part in stretches(new))


def stretches(excerpt: str) -> list[str]:
    """Return the parts of a text that an excerpt shows."""
    escapes = re.compile(r"\\(?:u[0-9a-f]{4}|x[0-9a-f]{2}|n|t)")
    return escapes.sub(lambda match: match[0].encode().decode("unicode_escape"), excerpt).split("…")


def test_each_change_is_shown_in_context() -> None:
    before = '说道："大相国寺仰委管菜园僧人鲁智深，搅扰。"那和尚'
    after = "说道：“大相国寺仰委管菜园僧人鲁智深，搅扰。”那和尚"
    assert find_examples(before, after) == [
        ('说道："大相国寺仰委管菜园僧人鲁', "说道：“大相国寺仰委管菜园僧人鲁"),
        ('管菜园僧人鲁智深，搅扰。"那和尚', "管菜园僧人鲁智深，搅扰。”那和尚"),
    ]


def test_invisible_characters_are_escaped() -> None:
    assert find_examples("林\u200b冲\u3000道", "林冲道") == [("林\\u200b冲\\u3000道", "林冲道")]
    assert find_examples("林冲\n道", "林冲道") == [("林冲\\n道", "林冲道")]
    assert find_examples("肐\ue10e地", "肐□地") == [("肐\\ue10e地", "肐□地")]


def test_each_kind_of_change_is_shown_before_repeats() -> None:
    before = "，".join(f"第{number}个人在这里说了一句话" for number in range(1000, 1040)) + "。又走了一段很远的路。。"
    after = before.replace("，", "、").replace("。。", "。")
    (first, last) = find_examples(before, after, limit=2)
    assert first == ("00个人在这里说了一句话，第1001个人在这里说了", "00个人在这里说了一句话、第1001个人在这里说了")
    assert last == ("话。又走了一段很远的路。。", "话。又走了一段很远的路。")
    assert len(find_examples(before, after)) == 10


def test_excerpt_ends_at_the_document() -> None:
    assert find_examples("前文\0林冲,去\0后文", "前文\0林冲，去\0后文") == [("林冲,去", "林冲，去")]


def test_equal_texts_have_no_samples() -> None:
    assert find_examples(BOOK, BOOK) == []
    assert find_examples("", "") == []


@given(st.text("水浒传，。\n\0", max_size=60), st.text("水浒传，。\n\0", max_size=60))
@example("水，水", "水水")
@example("\0" * 20, "\0" * 9)
def test_different_texts_have_samples(before: str, after: str) -> None:
    assert bool(find_examples(before, after)) == (before != after)


@given(st.text("水浒传，。\n", max_size=80), st.sets(st.integers(0, 79)))
def test_samples_are_distinct_parts_of_their_texts(text: str, removed: set[int]) -> None:
    after = "".join(character for index, character in enumerate(text) if index not in removed)
    excerpts = find_examples(text, after, limit=1000)
    assert len({*excerpts}) == len(excerpts)
    for old, new in excerpts:
        assert all(part in text for part in stretches(old))
        assert all(part in after for part in stretches(new))
