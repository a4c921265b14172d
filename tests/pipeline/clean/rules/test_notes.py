"""Notes: they go or stay as was said, and no text goes with them."""

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

from pipeline.clean.rule import Seen
from pipeline.clean.rules import notes
from pipeline.clean.rules.notes import DAIZHIGE, KANRIPO, MAX_LENGTH, POETRY, Note
from pipeline.clean.utf16 import codes, text_of
from pipeline.errors import BadConfig

DROP = {"（）": "drop"}
SEVERAL = {"（）": "drop:一作/按", "【】": "drop", "〖〗": "extract", "［］": "keep"}
BRACKETS = "（）()［］[]【】〖〗{}"
TEXT = st.lists(
    st.sampled_from([*BRACKETS, *"（）（）林，。 \n\0", "一作", "（一作甲）", "乙" * 900, "\n。"]), max_size=24
).map("".join)
POLICIES = st.sampled_from([DROP, SEVERAL, POETRY, DAIZHIGE, {"［］": "drop", "（）": "extract"}, {"（）": "keep"}])


def run(text: str, policies: Mapping[str, str]) -> tuple[str, Seen]:
    seen: Seen = Counter()
    return text_of(notes.rule(policies).apply(codes(text), seen)), seen


@pytest.mark.parametrize(
    ("text", "policies", "wanted"),
    [
        ("袁紹（一作「術」）兵", DROP, "袁紹兵"),
        ("袁紹(一作「術」)兵", DROP, "袁紹兵"),
        ("袁紹（一作「術」)兵", DROP, "袁紹兵"),
        ("先主姓劉【臣松之案】諱備", DAIZHIGE, "先主姓劉諱備"),
        ("余(浙江/)西南遊", KANRIPO, "余西南遊"),
        ("億[兆]慶［一］〔二〕", {"[]": "drop"}, "億慶〔二〕"),
        ("甲<乙>〈丙〉丁", {"<>": "drop", "〈〉": "keep"}, "甲〈丙〉丁"),
        ("甲（乙（丙〖1〗）丁）戊", DROP, "甲戊"),
        ("甲（乙〖1〗丁）戊", {"〖〗": "drop"}, "甲（乙丁）戊"),
    ],
)
def test_a_note_goes_as_its_brackets_say(text: str, policies: Mapping[str, str], wanted: str) -> None:
    assert run(text, policies)[0] == wanted


def test_a_note_that_spans_lines_is_taken_out_whole() -> None:
    assert run("春眠不覺曉。\n（自注：此夜直。\n草詔。\n）其二：處處聞啼鳥。", POETRY)[0] == (
        "春眠不覺曉。\n其二：處處聞啼鳥。"
    )


def test_a_note_never_spans_two_documents() -> None:
    left, seen = run("甲（乙\0丙）丁（戊）", DROP)
    assert left == "甲（乙\0丙）丁"
    assert seen == {"unbalanced （": 1, "unbalanced ）": 1, "（） dropped": 1, "characters of notes": 3}


def test_a_line_of_nothing_but_notes_and_marks_goes_with_its_newline() -> None:
    assert run("甲。\n（按）（見某）。\n乙。", POETRY)[0] == "甲。\n乙。"
    assert run("（按某）\n（按某）。\n乙。\n（按某）。", POETRY)[0] == "乙。"
    assert run("（按某）\0（按某）。\0乙\n\n（按某）\n\n丙", POETRY)[0] == "\0\0乙\n\n\n丙"
    assert run("甲（按某）。\n乙", POETRY)[0] == "甲。\n乙"


@pytest.mark.parametrize(
    ("text", "wanted", "seen"),
    [
        ("甲（乙，丙（注）丁", "甲（乙，丙丁", {"unbalanced （": 1}),
        ("甲）乙（注）丙", "甲）乙丙", {"unbalanced ）": 1}),
        ("甲（乙【丙）丁】戊", "甲丁】戊", {"unbalanced 】": 1, "unbalanced 【": 1}),
        ("（" * 3, "（" * 3, {"unbalanced （": 3}),
    ],
)
def test_brackets_without_a_partner_stay_and_are_counted(text: str, wanted: str, seen: dict[str, int]) -> None:
    left, found = run(text, {"（）": "drop", "【】": "drop"})
    assert left == wanted
    assert {what: count for what, count in found.items() if what.startswith("unbalanced")} == seen


@pytest.mark.parametrize(
    ("text", "wanted", "mixed"),
    [
        ("甲（一作乙］丙，丁（注）戊", "甲丙，丁戊", "mixed （］"),
        ("甲（一作乙}丙", "甲丙", "mixed （}"),
        ("甲（[乙]（丙]丁", "甲（[乙]丁", "mixed （]"),
    ],
)
def test_a_wrong_closer_closes_where_the_right_one_does_not_come(text: str, wanted: str, mixed: str) -> None:
    left, seen = run(text, DROP)
    assert left == wanted
    assert seen[mixed] == 1


def test_a_wrong_closer_inside_a_note_that_is_closed_does_nothing() -> None:
    left, seen = run("甲（全唐詩作「𣻕溪}。」）乙", DROP)
    assert left == "甲乙"
    assert not seen["mixed （}"]


def test_what_is_longer_than_a_note_stays_and_so_does_what_is_too_deep() -> None:
    longest = "（" + "長" * (MAX_LENGTH - 2) + "）"
    assert run(f"甲{longest}乙", DROP)[0] == "甲乙"
    longer = "（" + "長" * (MAX_LENGTH - 1) + "）"
    assert run(f"甲{longer}乙", DROP) == (f"甲{longer}乙", {"（） kept: too long": 1, "characters of notes": 0})
    assert run("甲（（（注）））乙", DROP)[0] == "甲乙"
    left, seen = run("甲（（（（注））））乙（注）", DROP)
    assert left == "甲（（（（注））））乙"
    assert seen["（） kept: too deep"] == 1


def test_with_words_only_a_note_with_one_of_them_goes() -> None:
    left, seen = run("甲（一作乙）丙（丁）戊（巳按）庚（按巳）", {"（）": "drop:一作/^按"})
    assert left == "甲丙（丁）戊（巳按）庚"
    assert seen["（） dropped"] == 2
    assert seen["（） kept: without the words"] == 2


def test_a_word_in_a_note_inside_says_nothing_of_the_one_around_it() -> None:
    assert run("（春眠不覺曉（一作早），處處聞啼鳥）", {"（）": "drop:一作"})[0] == "（春眠不覺曉，處處聞啼鳥）"


@pytest.mark.parametrize("aside", ["（疑是地上霜）", "（從此君王不早朝）", "（本是後山人）", "（云）某姓李（正末唱）"])
def test_of_poetry_an_aside_without_an_editor_in_it_stays(aside: str) -> None:
    assert run(f"甲{aside}乙", POETRY)[0] == f"甲{aside}乙".replace("（云）", "")


def test_to_extract_gives_the_notes_and_where_they_stood() -> None:
    text = "余(浙江/)西（音栖）遊【見上】。\n（其二）\n山"
    left, found = notes.extract(text, {"（）": "extract", "【】": "drop"})
    assert left == "余西遊。\n山"
    assert found == [Note(1, "（）", "浙江"), Note(2, "（）", "音栖"), Note(4, "（）", "其二")]
    assert left == run(text, {"（）": "extract", "【】": "drop"})[0]


def test_the_slash_of_a_composition_is_no_column_mark() -> None:
    assert notes.extract("甲（原作{扌/貝}）", {"（）": "extract"})[1] == [Note(1, "（）", "原作{扌/貝}")]


@given(TEXT, POLICIES)
@example("（（（（注））））", DROP)
@example("（［（]　］］", DROP)
@example("（" + "長" * 1990 + "（一作甲乙丙丁戊）））", DROP)
def test_the_rule_is_idempotent(text: str, policies: Mapping[str, str]) -> None:
    once, _ = run(text, policies)
    assert run(once, policies)[0] == once


@given(TEXT, POLICIES)
def test_what_goes_is_what_is_reported(text: str, policies: Mapping[str, str]) -> None:
    left, seen = run(text, policies)
    assert len(left) == len(text) - seen["characters of notes"]
    assert left.count("\0") == text.count("\0")


@given(TEXT, POLICIES)
def test_the_documents_of_a_page_have_no_influence_on_each_other(text: str, policies: Mapping[str, str]) -> None:
    assert run(text, policies)[0].split("\0") == [run(document, policies)[0] for document in text.split("\0")]


@given(st.lists(st.sampled_from(["林冲", "，", "（注）", "（一作（甲））", "(注)", "\n"]), max_size=12))
def test_what_stands_outside_all_brackets_stays(pieces: list[str]) -> None:
    left, _ = run("".join(pieces), DROP)
    assert left.replace("\n", "").replace("，", "") == "".join(each for each in pieces if each == "林冲")


@given(TEXT, POLICIES)
def test_the_notes_and_the_text_that_is_left_make_up_the_text(text: str, policies: Mapping[str, str]) -> None:
    document = text.replace("\0", "")
    every = {brackets: "extract" if policy == "drop" else policy for brackets, policy in policies.items()}
    left, found = notes.extract(document, every)
    assert left == run(document, policies)[0]
    if "\n" not in document and all(policy == "extract" for policy in every.values()):
        assert [note.place for note in found] == sorted(note.place for note in found)
        assert all(0 <= note.place <= len(left) for note in found)


def test_the_policies_of_a_command_line() -> None:
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
def test_a_policy_that_cannot_be_is_refused_with_a_hint(options: list[str]) -> None:
    with pytest.raises(BadConfig) as raised:
        notes.parse_policies(options)
    assert raised.value.hint


def test_to_keep_everything_changes_nothing() -> None:
    assert run("甲（乙）（", {"（）": "keep"}) == ("甲（乙）（", Counter())


def test_of_the_tang_poems_the_notes_go_and_every_verse_stays(shared: Path) -> None:
    with zstandard.open(shared / "data" / "tang_poems.jsonl.zst", "rt", encoding="utf-8") as lines:
        poems = [json.loads(line)["text"] for line in lines]
    left, seen = run("\0".join(poems), POETRY)
    assert (seen["（） dropped"], seen["（） kept: without the words"], seen["unbalanced （"]) == (10515, 719, 36)
    assert seen["characters of notes"] == 275808
    # What stands in no bracket at all is there still, line by line.
    for before, after in zip(poems, left.split("\0"), strict=True):
        if not re.search("[（）〖〗]", before):
            assert after == before
        elif not re.search("（[^）]*（|）[^（]*）|〖", before) and before.count("（") == before.count("）"):
            outside = re.sub("（[^（）]*）", "", before)
            assert _verse(re.sub("（[^（）]*）", "", after)) == _verse(outside)


def _verse(text: str) -> str:
    return re.sub("[，。；：、！？ \t\u3000\n]", "", text)
