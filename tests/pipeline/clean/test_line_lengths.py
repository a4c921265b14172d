"""Cutting of lines: a line that is too long is cut at the gentlest level that suffices, and no character is lost."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.lines import LEVELS, cut_line
from pipeline.errors import BadConfig

CLOSERS = "”’」』）》〉】〕〗"


@pytest.mark.parametrize(
    ("line", "pieces", "level"),
    [
        ("短", ["短"], ""),
        ("", [""], ""),
        ("“一二。三四五。”六七", ["“一二。", "三四五。”", "六七"], "sentence"),
        ("一二！？”三四五", ["一二！？”", "三四五"], "sentence"),
        ("一二；三四；五，六", ["一二；三四；", "五，六"], "semicolon"),
        ("一二，三四，五六", ["一二，三四，", "五六"], "comma"),
        ("一二。三四五六七，八", ["一二。", "三四五六七，", "八"], "comma"),
        ("一二三，”四五六", ["一二三，”", "四五六"], "comma"),
        ("“好。”，一二三四", ["“好。”，", "一二三四"], "sentence"),
        ("aaaa bbbb cccc dddd eeee", ["aaaa bbbb cccc ", "dddd eeee"], "space"),
        ("一二三四五六七", ["一二三四五六", "七"], "hard"),
        ("𤣥𤣥𤣥𤣥𤣥𤣥", ["𤣥𤣥𤣥𤣥", "𤣥𤣥"], "hard"),
        ("一二三四五六：七八", ["一二三四五", "六：七八"], "hard"),
        ("一二三四五六”七八", ["一二三四五", "六”七八"], "hard"),
        ("一二三四五“六七八", ["一二三四五", "“六七八"], "hard"),
        ("一二三四五六……七", ["一二三四五", "六……七"], "hard"),
        ("”””””””", ["””””””", "”"], "hard"),
    ],
)
def test_long_line_is_cut_at_the_gentlest_level(line: str, pieces: list[str], level: str) -> None:
    assert cut_line(line, 18) == (pieces, level)


PIECES = "林冲𤣥a b；，。！？…”』「—：é\ud840"
LINE = st.text(st.sampled_from(PIECES), max_size=120)


@given(LINE, st.integers(4, 60))
@example("甲甲甲甲甲；", 9)
@example("𤣥" * 5, 7)
@example("；；；；", 4)
def test_pieces_fit_and_add_up_to_the_line(line: str, max_bytes: int) -> None:
    pieces, level = cut_line(line, max_bytes)
    assert "".join(pieces) == line
    assert all(len(piece.encode("utf-8", "surrogatepass")) <= max_bytes for piece in pieces)
    assert (level == "") == (len(pieces) == 1)
    assert level in LEVELS
    assert all(pieces) or not line


@given(LINE, st.integers(4, 60))
def test_cutting_a_piece_again_changes_nothing(line: str, max_bytes: int) -> None:
    for piece in cut_line(line, max_bytes)[0]:
        assert cut_line(piece, max_bytes) == ([piece], "")


@given(LINE, st.integers(4, 60))
def test_piece_takes_as_many_sentences_as_fit(line: str, max_bytes: int) -> None:
    pieces, level = cut_line(line, max_bytes)
    if level == "sentence":
        for piece, next_piece in itertools.pairwise(pieces):
            first_sentence = re.match(f"[^。！？]*(?:[。！？][。！？，、；：{CLOSERS}…—]*|$)", next_piece)
            assert first_sentence
            assert len((piece + first_sentence[0]).encode("utf-8", "surrogatepass")) > max_bytes


@given(st.text(st.sampled_from("林冲𤣥，。；”"), max_size=120), st.integers(100, 140))
def test_no_piece_begins_with_a_mark_if_marks_are_rare(line: str, max_bytes: int) -> None:
    line = re.sub("[，。；”]{3,}", "，", line)
    pieces, _ = cut_line(line, max_bytes)
    assert not any(piece[0] in "，。；”" for piece in pieces[1:])


def test_limit_smaller_than_a_character_raises_bad_config() -> None:
    with pytest.raises(BadConfig, match="--max-bytes must be at least 4, got 3"):
        cut_line("林", 3)


def test_lines_of_shuihu_are_cut_after_sentences(shared: Path) -> None:
    lines = (shared / "data/shuihu_raw.txt").read_text("utf-8-sig").splitlines()
    results = [cut_line(line, 4192) for line in lines]
    assert [level for _, level in results].count("") == len(lines) - 160
    assert {level for _, level in results} == {"", "sentence"}
    assert all("".join(pieces) == line for line, (pieces, _) in zip(lines, results, strict=True))
    assert max(len(piece.encode()) for pieces, _ in results for piece in pieces) <= 4192
    assert sum(len(pieces) for pieces, _ in results) < 2_584_324 / 4192 + 2 * len(lines)
