"""Length of units: what is too long is cut at the gentlest place, always fits, and nothing is lost."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.lines import LEVELS, limit
from pipeline.errors import BadConfig

CLOSERS = "”’」』）》〉】〕〗"


@pytest.mark.parametrize(
    ("unit", "pieces", "level"),
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
def test_a_long_unit_is_cut_at_the_gentlest_place_that_does(unit: str, pieces: list[str], level: str) -> None:
    assert limit(unit, 18) == (pieces, level)


PIECES = "林冲𤣥a b；，。！？…”』「—：é\ud840"
UNIT = st.text(st.sampled_from(PIECES), max_size=120)


@given(UNIT, st.integers(4, 60))
@example("甲甲甲甲甲；", 9)
@example("𤣥" * 5, 7)
@example("；；；；", 4)
def test_the_pieces_fit_and_joined_they_are_the_unit(unit: str, max_bytes: int) -> None:
    pieces, level = limit(unit, max_bytes)
    assert "".join(pieces) == unit
    assert all(len(piece.encode("utf-8", "surrogatepass")) <= max_bytes for piece in pieces)
    assert (level == "") == (len(pieces) == 1)
    assert level in LEVELS
    assert all(pieces) or not unit


@given(UNIT, st.integers(4, 60))
def test_cutting_a_piece_again_changes_nothing(unit: str, max_bytes: int) -> None:
    for piece in limit(unit, max_bytes)[0]:
        assert limit(piece, max_bytes) == ([piece], "")


@given(UNIT, st.integers(4, 60))
def test_two_pieces_side_by_side_never_fit_into_one_unless_a_gentler_cut_parted_them(unit: str, max_bytes: int) -> None:
    pieces, level = limit(unit, max_bytes)
    if level == "sentence":
        for one, two in itertools.pairwise(pieces):
            first = re.match(f"[^。！？]*(?:[。！？][。！？，、；：{CLOSERS}…—]*|$)", two)
            assert first
            assert len((one + first[0]).encode("utf-8", "surrogatepass")) > max_bytes


@given(st.text(st.sampled_from("林冲𤣥，。；”"), max_size=120), st.integers(100, 140))
def test_no_piece_begins_with_a_mark_where_marks_are_few(unit: str, max_bytes: int) -> None:
    unit = re.sub("[，。；”]{3,}", "，", unit)
    pieces, _ = limit(unit, max_bytes)
    assert not any(piece[0] in "，。；”" for piece in pieces[1:])


def test_a_limit_that_holds_no_character_is_refused() -> None:
    with pytest.raises(BadConfig, match="max_bytes is 3"):
        limit("林", 3)


def test_the_lines_of_shuihu_are_cut_behind_sentences_in_no_time(shared: Path) -> None:
    lines = (shared / "data/shuihu_raw.txt").read_text("utf-8-sig").splitlines()
    cut = [limit(line, 4192) for line in lines]
    assert [level for _, level in cut].count("") == len(lines) - 160
    assert {level for _, level in cut} == {"", "sentence"}
    assert all("".join(pieces) == line for line, (pieces, _) in zip(lines, cut, strict=True))
    assert max(len(piece.encode()) for pieces, _ in cut for piece in pieces) <= 4192
    assert sum(len(pieces) for pieces, _ in cut) < 2_584_324 / 4192 + 2 * len(lines)
