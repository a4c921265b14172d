"""Excerpts of real texts with brackets and with spaces for marks come out as expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.clean.pages import clean_documents

_POEMS = (
    "静夜思　李白\n床前明月光　疑是地上霜\n举头望明月　低头思故乡\n"
    "登鹳雀楼 王之涣\n白日依山尽 黄河入海流\n欲穷千里目 更上一层楼"
)
_WORDS = "[三国演义/罗贯中著]\n他写道{大笑}，便走了。\n[北京-上海]的车票在这里买。\n袁紹□兵，□也。"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("20_spaces_are_marks.txt", [("", _POEMS)]),
        (
            "21_brackets.txt",
            [
                ("", "（1）第一条要求如下。\n（2）第二条要求如下。"),
                ("第2章 狂人日记（1）", "见（二）与（3）两节。"),
            ],
        ),
        ("23_words_in_brackets.txt", [("", _WORDS)]),
    ],
)
def test_case_has_the_expected_documents(shared: Path, case: str, expected: list[tuple[str, str]]) -> None:
    text = (shared / "cases" / "chinese" / case).read_text(encoding="utf-8")
    assert clean_documents(text) == expected
