"""Variants: replaced in one pass by the user's table; invalid tables raise with the line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clean.rules.variants import load_table, resolve_chains, rule
from pipeline.clean.utf16 import decode_utf16, encode_utf16, join_documents, split_documents
from pipeline.errors import BadConfig, InputMissing

TABLE = {"爲": "為", "峯": "峰", "𠮷": "吉", "叫": "㗂", "真": "𥄂"}


def replaced(text: str, table: dict[str, str] = TABLE, counts: Counter[str] | None = None) -> str:
    variants_rule = rule(table)
    assert variants_rule is not None
    return decode_utf16(variants_rule.apply(encode_utf16(text), Counter() if counts is None else counts))


def test_variants_in_and_beyond_the_first_plane_are_replaced() -> None:
    counts: Counter[str] = Counter()
    assert replaced("爲𠮷峯真爲𡘙叫", counts=counts) == "為吉峰𥄂為𡘙㗂"
    assert counts == {"爲 → 為": 2, "𠮷 → 吉": 1, "峯 → 峰": 1, "真 → 𥄂": 1, "叫 → 㗂": 1}


def test_text_without_variants_is_unchanged() -> None:
    counts: Counter[str] = Counter()
    assert replaced("林冲𡘙", counts=counts) == "林冲𡘙"
    assert not counts


def test_documents_stay_separate() -> None:
    variants_rule = rule(TABLE)
    assert variants_rule is not None
    assert split_documents(variants_rule.apply(join_documents(["爲", "", "𠮷\n峯"]), Counter())) == ["為", "", "吉\n峰"]


def test_table_that_changes_nothing_has_no_rule() -> None:
    assert rule({}) is None
    assert rule({"爲": "爲"}) is None


def test_rule_has_triggers_and_produced_characters() -> None:
    variants_rule = rule({"爲": "為", "𠮷": "吉"})
    assert variants_rule is not None
    assert variants_rule.triggers == ((ord("爲"), ord("爲")), (0xD842, 0xD842))
    assert set(variants_rule.produces) == {"為", "吉"}


def test_chain_is_followed_to_its_end() -> None:
    assert resolve_chains({"甲": "乙", "乙": "丙", "丙": "𠮷"}) == {"甲": "𠮷", "乙": "𠮷", "丙": "𠮷"}


def test_cycle_raises() -> None:
    with pytest.raises(BadConfig, match="the variants form a cycle: 乙 → 丙 → 乙"):
        rule({"甲": "乙", "乙": "丙", "丙": "乙"})


HAN = st.sampled_from("甲乙丙丁戊𠮷𡘙㗂a，")


@given(st.dictionaries(HAN, HAN, max_size=6), st.text(HAN, max_size=20))
def test_rule_is_idempotent_and_changes_single_characters(table: dict[str, str], text: str) -> None:
    try:
        variants_rule = rule(table)
    except BadConfig:  # a cycle
        variants_rule = None
    if variants_rule is None:
        return
    once = decode_utf16(variants_rule.apply(encode_utf16(text), Counter()))
    assert decode_utf16(variants_rule.apply(encode_utf16(once), Counter())) == once
    assert once == "".join(resolve_chains(table).get(character, character) for character in text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "# mine\n爲\t為\n\n峯\t峰\n"),
        ("a.txt", "\ufeff爲\t為\r\n峯\t峰\r\n"),
        ("a.csv", "爲,為\n峯, 峰\n"),
        ("a.txt", "# 爲 → 為\n爲 → 為\r\n峯→峰\n"),
        ("a.csv", "爲,為\n峯 → 峰\n"),
        ("a.json", json.dumps({"爲": "為", "峯": "峰"})),
        ("a.tsv", "爲\t為\n峯\t峰\n峯\t峰\n為\t為"),
    ],
)
def test_table_is_read_from_tsv_csv_and_json(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert load_table(tmp_path / name) == {"爲": "為", "峯": "峰"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "爲\t為\n峯 峰\n", "a.tsv, line 2: not two columns"),
        ("a.txt", "爲 → 為 → 偽\n", "a.txt, line 1: not two columns"),
        ("a.tsv", "爲\t為\n峯\t\n", "a.tsv, line 2: '' is not one character"),
        ("a.tsv", "爲為\t為\n", "a.tsv, line 1: '爲為' is not one character"),
        ("a.tsv", "爲\t為\n\n爲\t偽\n", "a.tsv, line 3: 爲 maps to 偽, but an earlier entry maps it to 為"),
        ("a.tsv", "爲\t\u200b\n", "line 1: '\\u200b' is invisible"),
        ("a.csv", "爲,為\n為,爲\n", "a.csv: the variants form a cycle: 爲 → 為 → 爲"),
        ("a.json", '{"爲": "為", "爲": "偽"}', "a.json: '爲': 爲 maps to 偽, but an earlier entry maps it to 為"),
        ("a.json", '{"爲": 1}', "a.json: '爲': not two columns"),
        ("a.json", '["爲"]', "a.json: not an object"),
        ("a.json", '{"爲"', "a.json: not JSON"),
    ],
)
def test_invalid_table_raises_with_file_and_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(BadConfig) as failed:
        load_table(tmp_path / name)
    assert message in failed.value.message
    assert failed.value.message.startswith(str(tmp_path))
    assert failed.value.hint


def test_missing_table_and_other_encoding_raise(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such table"):
        load_table(tmp_path / "none.tsv")
    (tmp_path / "a.tsv").write_bytes("爲\t為".encode("gb18030"))
    with pytest.raises(BadConfig, match="not UTF-8"):
        load_table(tmp_path / "a.tsv")
