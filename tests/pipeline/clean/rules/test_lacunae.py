"""Lacunae: signs of lost characters become □, and ambiguous signs are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.rule import Counts
from pipeline.clean.rules import lacunae
from pipeline.clean.utf16 import decode_utf16, encode_utf16
from pipeline.errors import BadConfig

TEXT = st.text("□■囗○●〇一九百千十卷年甲，。 \n\0", max_size=24)


def run(text: str, policy: str = "keep") -> tuple[str, Counts]:
    counts: Counts = Counter()
    return decode_utf16(lacunae.rule(policy).apply(encode_utf16(text), counts)), counts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("幸■乾坤", "幸□乾坤"),
        ("囗囗囗囗囗，忘言酒暫醺。", "□□□□□，忘言酒暫醺。"),
        ("近城多囗囗，棲息", "近城多□□，棲息"),
        ("□囗甲囗■", "□□甲□□"),
        ("苦哉●眼士", "苦哉□眼士"),
        ("林藏●●多殘笋", "林藏□□多殘笋"),
        ("微芳比蕭●。", "微芳比蕭□。"),
        ("微芳比蕭●．", "微芳比蕭□．"),
        ("□○○", "□□□"),
    ],
)
def test_certain_lacuna_becomes_a_box(text: str, expected: str) -> None:
    assert run(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    ["取囗童以爲薪", "●天地玄黃", "甲\n●●乙", "原作「●」", "趙○○曰", "幷序○序爲南嶽齊己撰", "○今按", "●□□"],
)
def test_ambiguous_sign_is_kept_and_counted(text: str) -> None:
    cleaned, counts = run(text)
    assert cleaned == text
    assert sum(count for case, count in counts.items() if case.endswith(" left")) == sum(map(text.count, "囗○●"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一○七七年", "一〇七七年"),
        ("伯三七八○。", "伯三七八〇。"),
        ("卷一一○○○「六姥」", "卷一一〇〇〇「六姥」"),
        ("五言詩 二○\n自從", "五言詩 二〇\n自從"),
        ("卷五三○李華", "卷五三〇李華"),
        ("二○卷", "二〇卷"),
        ("二百○三首", "二百〇三首"),
        ("一千○五十人", "一千〇五十人"),
        ("一千○五人", "一千〇五人"),
        ("一千○五十三人", "一千〇五十三人"),
    ],
)
def test_circle_in_a_number_becomes_the_digit(text: str, expected: str) -> None:
    assert run(text)[0] == expected


@pytest.mark.parametrize("text", ["第六○五十六首", "第二十五○三十一首", "第八○十首", "第十一○五首", "卷一○高帝"])
def test_circle_between_two_numbers_or_before_a_title_is_kept(text: str) -> None:
    assert run(text)[0] == text


def test_signs_and_lacunae_are_counted() -> None:
    assert run("■囗囗甲●乙□，一○七年，○")[1] == {
        "■ → □": 1,
        "囗 → □": 2,
        "● → □": 1,
        "○ → 〇": 1,
        "○ left": 1,
        "□": 5,
    }


def test_collapse_reduces_runs_and_counts_removals() -> None:
    cleaned, counts = run("甲□□□乙□，囗囗\0□□\n□", "collapse")
    assert cleaned == "甲□乙□，□\0□\n□"
    assert (counts["□□ → □"], counts["□"]) == (4, 5)
    assert run("", "collapse") == ("", {"□□ → □": 0, "□": 0})


def test_drop_unit_equals_keep_and_unknown_policy_raises() -> None:
    assert run("甲□□■", "drop-unit") == run("甲□□■", "keep")
    with pytest.raises(BadConfig, match="drop'"):
        lacunae.rule("drop")


@pytest.mark.parametrize("policy", lacunae.POLICIES)
@given(text=TEXT)
@example("一○□○")
@example("甲□○●乙")
@example("■○一○")
def test_rule_is_idempotent_and_keeps_documents_apart(policy: str, text: str) -> None:
    once, counts = run(text, policy)
    assert run(once, policy)[0] == once
    assert once.count("\0") == text.count("\0")
    assert len(once) == len(text) - counts["□□ → □"]
    assert once.count("□") == counts["□"]


@given(TEXT)
def test_every_change_is_counted(text: str) -> None:
    cleaned, counts = run(text)
    changed = sum(count for case, count in counts.items() if "→" in case)
    assert changed == sum(before != after for before, after in zip(text, cleaned, strict=True))


@given(TEXT)
def test_documents_of_a_page_do_not_affect_each_other(text: str) -> None:
    assert run(text)[0].split("\0") == [run(document)[0] for document in text.split("\0")]


def test_lacunae_of_the_song_ci_are_unchanged(shared: Path) -> None:
    text = (shared / "data" / "song_ci.txt").read_text(encoding="utf-8")
    assert run(text) == (text, {"□": 3129})
