"""Variants: folded by a table of one's own, in one pass, and a table that cannot be is refused with its line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.rules.variants import load, resolved, rule
from pipeline.clean.utf16 import codes, join, split, text_of
from pipeline.errors import BadConfig, InputMissing

TABLE = {"爲": "為", "峯": "峰", "𠮷": "吉", "叫": "㗂", "真": "𥄂"}


def folded(text: str, table: dict[str, str] = TABLE, seen: Counter[str] | None = None) -> str:
    found = rule(table)
    assert found is not None
    return text_of(found.apply(codes(text), Counter() if seen is None else seen))


def test_characters_within_and_beyond_the_first_plane_become_what_the_table_says() -> None:
    seen: Counter[str] = Counter()
    assert folded("爲𠮷峯真爲𡘙叫", seen=seen) == "為吉峰𥄂為𡘙㗂"
    assert seen == {"爲 → 為": 2, "𠮷 → 吉": 1, "峯 → 峰": 1, "真 → 𥄂": 1, "叫 → 㗂": 1}


def test_a_text_without_variants_stays_and_nothing_is_counted() -> None:
    seen: Counter[str] = Counter()
    assert folded("林冲𡘙", seen=seen) == "林冲𡘙"
    assert not seen


def test_documents_stay_parted() -> None:
    found = rule(TABLE)
    assert found is not None
    assert split(found.apply(join(["爲", "", "𠮷\n峯"]), Counter())) == ["為", "", "吉\n峰"]


def test_a_table_that_changes_nothing_is_no_rule() -> None:
    assert rule({}) is None
    assert rule({"爲": "爲"}) is None


def test_the_rule_is_called_for_its_characters_and_says_what_it_brings_in() -> None:
    found = rule({"爲": "為", "𠮷": "吉"})
    assert found is not None
    assert found.triggers == ((ord("爲"), ord("爲")), (0xD842, 0xD842))
    assert set(found.makes) == {"為", "吉"}


def test_a_chain_is_followed_to_its_end() -> None:
    assert resolved({"甲": "乙", "乙": "丙", "丙": "𠮷"}) == {"甲": "𠮷", "乙": "𠮷", "丙": "𠮷"}


def test_a_circle_is_refused() -> None:
    with pytest.raises(BadConfig, match="the variants go round: 乙 → 丙 → 乙"):
        rule({"甲": "乙", "乙": "丙", "丙": "乙"})


HAN = st.sampled_from("甲乙丙丁戊𠮷𡘙㗂a，")


@given(st.dictionaries(HAN, HAN, max_size=6), st.text(HAN, max_size=20))
def test_folding_is_idempotent_and_changes_single_characters_only(table: dict[str, str], text: str) -> None:
    try:
        found = rule(table)
    except BadConfig:  # a circle
        found = None
    if found is None:
        return
    once = text_of(found.apply(codes(text), Counter()))
    assert text_of(found.apply(codes(once), Counter())) == once
    assert once == "".join(resolved(table).get(character, character) for character in text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "# mine\n爲\t為\n\n峯\t峰\n"),
        ("a.txt", "\ufeff爲\t為\r\n峯\t峰\r\n"),
        ("a.csv", "爲,為\n峯, 峰\n"),
        ("a.json", json.dumps({"爲": "為", "峯": "峰"})),
        ("a.tsv", "爲\t為\n峯\t峰\n峯\t峰\n為\t為"),
    ],
)
def test_a_table_is_read_from_tsv_csv_and_json(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert load(tmp_path / name) == {"爲": "為", "峯": "峰"}


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.tsv", "爲\t為\n峯 峰\n", "a.tsv, line 2: not two columns"),
        ("a.tsv", "爲\t為\n峯\t\n", "a.tsv, line 2: '' is not one character"),
        ("a.tsv", "爲為\t為\n", "a.tsv, line 1: '爲為' is not one character"),
        ("a.tsv", "爲\t為\n\n爲\t偽\n", "a.tsv, line 3: 爲 becomes 偽, and 為 before"),
        ("a.tsv", "爲\t\u200b\n", "line 1: '\\u200b' cannot be seen"),
        ("a.csv", "爲,為\n為,爲\n", "a.csv: the variants go round: 爲 → 為 → 爲"),
        ("a.json", '{"爲": "為", "爲": "偽"}', "a.json: '爲': 爲 becomes 偽, and 為 before"),
        ("a.json", '{"爲": 1}', "a.json: '爲': not two columns"),
        ("a.json", '["爲"]', "a.json: not an object"),
        ("a.json", '{"爲"', "a.json: not JSON"),
    ],
)
def test_a_bad_table_is_refused_with_the_file_and_the_line(name: str, content: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(BadConfig) as failed:
        load(tmp_path / name)
    assert what in failed.value.what
    assert failed.value.what.startswith(str(tmp_path))
    assert failed.value.hint


def test_a_missing_table_and_one_that_is_not_utf8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such table"):
        load(tmp_path / "none.tsv")
    (tmp_path / "a.tsv").write_bytes("爲\t為".encode("gb18030"))
    with pytest.raises(BadConfig, match="not UTF-8"):
        load(tmp_path / "a.tsv")
