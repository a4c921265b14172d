"""Notes: removed, kept or extracted by policy, without losing any text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.rule import Counts
from pipeline.clean.rules import notes
from pipeline.clean.rules.notes import DAIZHIGE_POLICIES, KANRIPO_POLICIES, MAX_LENGTH, POETRY_POLICIES, Note
from pipeline.clean.utf16 import decode_utf16, encode_utf16
from pipeline.errors import BadConfig

DROP = {"（）": "drop"}
MIXED = {"（）": "drop:一作/按", "【】": "drop", "〖〗": "extract", "［］": "keep"}
BRACKETS = "（）()［］[]【】〖〗{}"
TEXT = st.lists(
    st.sampled_from([*BRACKETS, *"（）（）林，。 \n\0", "一作", "（一作甲）", "乙" * 900, "\n。"]), max_size=24
).map("".join)
POLICIES = st.sampled_from(
    [DROP, MIXED, POETRY_POLICIES, DAIZHIGE_POLICIES, {"［］": "drop", "（）": "extract"}, {"（）": "keep"}]
)


def run(text: str, policies: Mapping[str, str]) -> tuple[str, Counts]:
    counts: Counts = Counter()
    return decode_utf16(notes.rule(policies).apply(encode_utf16(text), counts)), counts


@pytest.mark.parametrize(
    ("text", "policies", "expected"),
    [
        ("袁紹（一作「術」）兵", DROP, "袁紹兵"),
        ("袁紹(一作「術」)兵", DROP, "袁紹兵"),
        ("袁紹（一作「術」)兵", DROP, "袁紹兵"),
        ("先主姓劉【臣松之案】諱備", DAIZHIGE_POLICIES, "先主姓劉諱備"),
        ("余(浙江/)西南遊", KANRIPO_POLICIES, "余西南遊"),
        ("億[兆]慶［一］〔二〕", {"[]": "drop"}, "億慶〔二〕"),
        ("甲<乙>〈丙〉丁", {"<>": "drop", "〈〉": "keep"}, "甲〈丙〉丁"),
        ("甲（乙（丙〖1〗）丁）戊", DROP, "甲戊"),
        ("甲（乙〖1〗丁）戊", {"〖〗": "drop"}, "甲（乙丁）戊"),
    ],
)
def test_note_is_removed_by_the_policy_of_its_brackets(text: str, policies: Mapping[str, str], expected: str) -> None:
    assert run(text, policies)[0] == expected


def test_note_that_spans_lines_is_removed_completely() -> None:
    assert run("春眠不覺曉。\n（自注：此夜直。\n草詔。\n）其二：處處聞啼鳥。", POETRY_POLICIES)[0] == (
        "春眠不覺曉。\n其二：處處聞啼鳥。"
    )


def test_note_never_spans_two_documents() -> None:
    cleaned, counts = run("甲（乙\0丙）丁（戊）", DROP)
    assert cleaned == "甲（乙\0丙）丁"
    assert counts == {"unbalanced （": 1, "unbalanced ）": 1, "（） dropped": 1, "characters of notes": 3}


def test_line_of_only_notes_and_marks_is_removed() -> None:
    assert run("甲。\n（按）（見某）。\n乙。", POETRY_POLICIES)[0] == "甲。\n乙。"
    assert run("（按某）\n（按某）。\n乙。\n（按某）。", POETRY_POLICIES)[0] == "乙。"
    assert run("（按某）\0（按某）。\0乙\n\n（按某）\n\n丙", POETRY_POLICIES)[0] == "\0\0乙\n\n\n丙"
    assert run("甲（按某）。\n乙", POETRY_POLICIES)[0] == "甲。\n乙"


@pytest.mark.parametrize(
    ("text", "expected", "unbalanced"),
    [
        ("甲（乙，丙（注）丁", "甲（乙，丙丁", {"unbalanced （": 1}),
        ("甲）乙（注）丙", "甲）乙丙", {"unbalanced ）": 1}),
        ("甲（乙【丙）丁】戊", "甲丁】戊", {"unbalanced 】": 1, "unbalanced 【": 1}),
        ("（" * 3, "（" * 3, {"unbalanced （": 3}),
    ],
)
def test_unbalanced_brackets_are_kept_and_counted(text: str, expected: str, unbalanced: dict[str, int]) -> None:
    cleaned, counts = run(text, {"（）": "drop", "【】": "drop"})
    assert cleaned == expected
    assert {case: count for case, count in counts.items() if case.startswith("unbalanced")} == unbalanced


@pytest.mark.parametrize(
    ("text", "expected", "mixed"),
    [
        ("甲（一作乙］丙，丁（注）戊", "甲丙，丁戊", "mixed （］"),
        ("甲（一作乙}丙", "甲丙", "mixed （}"),
        ("甲（[乙]（丙]丁", "甲（[乙]丁", "mixed （]"),
    ],
)
def test_wrong_closer_closes_if_the_right_one_is_missing(text: str, expected: str, mixed: str) -> None:
    cleaned, counts = run(text, DROP)
    assert cleaned == expected
    assert counts[mixed] == 1


def test_wrong_closer_inside_a_closed_note_is_ignored() -> None:
    cleaned, counts = run("甲（全唐詩作「𣻕溪}。」）乙", DROP)
    assert cleaned == "甲乙"
    assert not counts["mixed （}"]


def test_too_long_and_too_deep_brackets_are_kept() -> None:
    longest = "（" + "長" * (MAX_LENGTH - 2) + "）"
    assert run(f"甲{longest}乙", DROP)[0] == "甲乙"
    longer = "（" + "長" * (MAX_LENGTH - 1) + "）"
    assert run(f"甲{longer}乙", DROP) == (f"甲{longer}乙", {"（） kept: too long": 1, "characters of notes": 0})
    assert run("甲（（（注）））乙", DROP)[0] == "甲乙"
    cleaned, counts = run("甲（（（（注））））乙（注）", DROP)
    assert cleaned == "甲（（（（注））））乙"
    assert counts["（） kept: too deep"] == 1


def test_drop_with_words_removes_only_matching_notes() -> None:
    cleaned, counts = run("甲（一作乙）丙（丁）戊（巳按）庚（按巳）", {"（）": "drop:一作/^按"})
    assert cleaned == "甲丙（丁）戊（巳按）庚"
    assert counts["（） dropped"] == 2
    assert counts["（） kept: without the words"] == 2


def test_word_in_an_inner_note_does_not_match_the_outer_note() -> None:
    assert run("（春眠不覺曉（一作早），處處聞啼鳥）", {"（）": "drop:一作"})[0] == "（春眠不覺曉，處處聞啼鳥）"


@pytest.mark.parametrize("aside", ["（疑是地上霜）", "（從此君王不早朝）", "（本是後山人）", "（云）某姓李（正末唱）"])
def test_aside_in_poetry_is_kept(aside: str) -> None:
    assert run(f"甲{aside}乙", POETRY_POLICIES)[0] == f"甲{aside}乙".replace("（云）", "")


def test_extract_returns_the_notes_and_their_positions() -> None:
    text = "余(浙江/)西（音栖）遊【見上】。\n（其二）\n山"
    cleaned, extracted = notes.extract(text, {"（）": "extract", "【】": "drop"})
    assert cleaned == "余西遊。\n山"
    assert extracted == [Note(1, "（）", "浙江"), Note(2, "（）", "音栖"), Note(4, "（）", "其二")]
    assert cleaned == run(text, {"（）": "extract", "【】": "drop"})[0]


def test_slash_of_a_gaiji_is_not_a_column_separator() -> None:
    assert notes.extract("甲（原作{扌/貝}）", {"（）": "extract"})[1] == [Note(1, "（）", "原作{扌/貝}")]


@given(TEXT, POLICIES)
@example("（（（（注））））", DROP)
@example("（［（]　］］", DROP)
@example("（" + "長" * 1990 + "（一作甲乙丙丁戊）））", DROP)
def test_rule_is_idempotent(text: str, policies: Mapping[str, str]) -> None:
    once, _ = run(text, policies)
    assert run(once, policies)[0] == once


@given(TEXT, POLICIES)
def test_removed_characters_are_counted(text: str, policies: Mapping[str, str]) -> None:
    cleaned, counts = run(text, policies)
    assert len(cleaned) == len(text) - counts["characters of notes"]
    assert cleaned.count("\0") == text.count("\0")


@given(TEXT, POLICIES)
def test_documents_of_a_page_do_not_affect_each_other(text: str, policies: Mapping[str, str]) -> None:
    assert run(text, policies)[0].split("\0") == [run(document, policies)[0] for document in text.split("\0")]


@given(st.lists(st.sampled_from(["林冲", "，", "（注）", "（一作（甲））", "(注)", "\n"]), max_size=12))
def test_text_outside_brackets_is_kept(pieces: list[str]) -> None:
    cleaned, _ = run("".join(pieces), DROP)
    assert cleaned.replace("\n", "").replace("，", "") == "".join(piece for piece in pieces if piece == "林冲")


@given(TEXT, POLICIES)
def test_extract_leaves_the_same_text_as_the_rule(text: str, policies: Mapping[str, str]) -> None:
    document = text.replace("\0", "")
    extracting = {brackets: "extract" if policy == "drop" else policy for brackets, policy in policies.items()}
    cleaned, extracted = notes.extract(document, extracting)
    assert cleaned == run(document, policies)[0]
    if "\n" not in document and all(policy == "extract" for policy in extracting.values()):
        assert [note.position for note in extracted] == sorted(note.position for note in extracted)
        assert all(0 <= note.position <= len(cleaned) for note in extracted)


def test_policies_are_parsed_from_options() -> None:
    assert notes.parse_policies(["（）=drop", "【】=extract", "()=drop", "〖〗=drop:一作/按"]) == {
        "（）": "drop",
        "【】": "extract",
        "〖〗": "drop:一作/按",
    }
    assert notes.parse_policies([]) == {}


@pytest.mark.parametrize(
    "options",
    [
        ["（）"],
        ["（）=lose"],
        ["（）=drop:"],
        ["（）=drop:/"],
        ["（）=keep:一作"],
        ["（）=drop:("],
        ["（=drop"],
        ["=drop"],
        ["（）=drop", "()=keep"],
    ],
)
def test_invalid_policy_raises_with_a_hint(options: list[str]) -> None:
    with pytest.raises(BadConfig) as raised:
        notes.parse_policies(options)
    assert raised.value.hint


def test_keep_changes_nothing() -> None:
    assert run("甲（乙）（", {"（）": "keep"}) == ("甲（乙）（", Counter())


def test_tang_poems_lose_their_notes_and_keep_every_verse(shared: Path) -> None:
    with zstandard.open(shared / "data" / "tang_poems.jsonl.zst", "rt", encoding="utf-8") as lines:
        poems = [json.loads(line)["text"] for line in lines]
    cleaned, counts = run("\0".join(poems), POETRY_POLICIES)
    assert (counts["（） dropped"], counts["（） kept: without the words"], counts["unbalanced （"]) == (10515, 719, 36)
    assert counts["characters of notes"] == 275808
    # Text outside brackets is unchanged, line by line.
    for before, after in zip(poems, cleaned.split("\0"), strict=True):
        if not re.search("[（）〖〗]", before):
            assert after == before
        elif not re.search("（[^）]*（|）[^（]*）|〖", before) and before.count("（") == before.count("）"):
            outside = re.sub("（[^（）]*）", "", before)
            assert _verse(re.sub("（[^（）]*）", "", after)) == _verse(outside)


def _verse(text: str) -> str:
    return re.sub("[，。；：、！？ \t\u3000\n]", "", text)
