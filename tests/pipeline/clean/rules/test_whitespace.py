"""Gaps: spaces that are the only marks of a text are kept or replaced, all other spaces of Chinese text are deleted."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.options import CleanOptions
from pipeline.clean.report import problems
from pipeline.clean.report.report import CleaningReport
from pipeline.clean.rules import whitespace
from pipeline.clean.utf16 import join_documents, split_documents
from pipeline.errors import BadConfig
from tests.pipeline.clean.pages import apply_rule, clean_documents, clean_page

PROSE = "话说大宋天下。那林冲去了，不在话下。"
TEXT = st.lists(
    st.sampled_from(
        ["春眠", "不觉晓", "甫", "𠮷", "□", " ", "\u3000", "\t", "\n", "，", "。", "、", "“", "ab", "(", ".", "\0"]
    ),
    max_size=24,
).map("".join)
POLICY = st.sampled_from(sorted(whitespace.POLICIES))


def spaces(text: str, gaps: str = "keep") -> str:
    return apply_rule(whitespace.rule(gaps), text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("床前明月光　疑是地上霜", "床前明月光　疑是地上霜"),
        ("弟子规 圣人训\n首孝弟 次谨信", "弟子规 圣人训\n首孝弟 次谨信"),
        ("毗婆尸佛　尸棄佛", "毗婆尸佛　尸棄佛"),
        ("白日依山尽  　黄河入海流", "白日依山尽 黄河入海流"),
        ("白日依山尽\t黄河入海流\u00a0欲穷千里目", "白日依山尽 黄河入海流 欲穷千里目"),
        ("　　床前明月光　", "床前明月光"),
        ("卷 一　杜 甫", "卷一杜甫"),
        ("床 前 明 月 光", "床前明月光"),
        ("天台雲居　智禪師", "天台雲居　智禪師"),
        ("春眠不觉晓 abc 处处闻啼鸟", "春眠不觉晓abc处处闻啼鸟"),
        ("《诗经》　国风", "《诗经》国风"),
    ],
)
def test_gap_between_clauses_of_text_without_marks_is_kept(text: str, expected: str) -> None:
    assert spaces(text) == expected


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ("keep", "床前明月光　疑是地上霜"),
        ("comma", "床前明月光，疑是地上霜"),
        ("newline", "床前明月光\n疑是地上霜"),
        ("drop", "床前明月光疑是地上霜"),
    ],
)
def test_policy_decides_what_stands_for_a_gap(gaps: str, expected: str) -> None:
    assert clean_documents("床前明月光　疑是地上霜", gaps=gaps) == [("", expected)]


@pytest.mark.parametrize("line", ["导引 和岘", "林冲 去了", "林冲　去了。", "杜　甫", "登鹳雀楼 　王之涣"])
def test_gap_in_a_document_with_marks_is_deleted(line: str) -> None:
    assert spaces(f"{line}\n{PROSE}") == re.sub("[ \u3000]", "", line) + "\n" + PROSE


@pytest.mark.parametrize("line", ["静夜思　李白", "滚滚长江东逝水　　浪花淘尽英雄"])
def test_ideographic_space_in_a_line_without_marks_is_kept_unless_gaps_are_dropped(line: str) -> None:
    for gaps in ("keep", "comma"):
        assert spaces(f"{line}\n{PROSE}", gaps) == line.replace("　　", "　") + "\n" + PROSE
    assert spaces(f"{line}\n{PROSE}", "drop") == line.replace("　", "") + "\n" + PROSE


def test_line_with_a_mark_in_a_text_without_marks_keeps_no_gap() -> None:
    verse = "床前明月光　疑是地上霜\n" * 12
    assert spaces(verse + "天宝三载，春日 作于长安") == verse + "天宝三载，春日作于长安"


def test_documents_of_a_page_are_judged_one_by_one() -> None:
    texts = ["床前明月光　疑是地上霜", f"林冲 去了{PROSE}", "欲穷千里目 更上一层楼"]
    cleaned = whitespace.rule().apply(join_documents(texts), Counter())
    assert split_documents(cleaned) == [texts[0], f"林冲去了{PROSE}", texts[2]]


def test_gaps_are_counted_by_what_stands_for_them() -> None:
    text = "床前明月光　疑是地上霜\n举头望明月　低头思故乡"
    counts = {gaps: clean_page(text, gaps=gaps).effects["spaces"] for gaps in whitespace.POLICIES}
    assert counts["keep"].counts["gaps kept"] == counts["comma"].counts["gap → ，"] == 2
    assert counts["newline"].counts["gap → line end"] == counts["drop"].counts["inside lines"] == 2
    assert {gaps: effect.removed for gaps, effect in counts.items()} == {"keep": 0, "comma": 0, "newline": 0, "drop": 2}


def test_report_names_kept_gaps_and_the_option() -> None:
    page = clean_page("床前明月光　疑是地上霜")
    report = CleaningReport()
    report.add_effects(page.input_size, page.effects, page.size)
    (warning,) = [line for line in problems.warnings(report) if "SPACES" in line]
    assert "between clauses: 1 kept" in warning
    assert "--gaps" in warning
    assert not problems.warnings(CleaningReport())


@given(TEXT, POLICY)
@example("甲乙 丙丁", "comma")
def test_rule_is_idempotent(text: str, gaps: str) -> None:
    once = spaces(text, gaps)
    assert spaces(once, gaps) == once


@given(TEXT, POLICY)
def test_rule_changes_nothing_but_spaces(text: str, gaps: str) -> None:
    assert re.sub("[ \t\u3000，\n]", "", spaces(text, gaps)) == re.sub("[ \t\u3000，\n]", "", text)


@given(TEXT)
def test_kept_gaps_change_nothing_but_their_spaces(text: str) -> None:
    assert re.sub("[ \u3000]", "", spaces(text)) == re.sub("[ \u3000]", "", spaces(text, "drop"))


def test_default_is_not_part_of_the_identity() -> None:
    assert "gaps" not in CleanOptions().identity()
    assert CleanOptions(gaps="comma").identity()["gaps"] == "comma"
    with pytest.raises(BadConfig):
        CleanOptions(gaps="space")
