"""Which field of a record is the text."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import BadData
from pipeline.readers.fields import FieldChoice, choose, entries, note_on, note_on_entries, split_names, title_of

PROSE = "The old man sat in the boat and did not say where he went. "


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({"text": "a", "content": PROSE}, ("text",)),
        ({"content": PROSE, "url": "http://a"}, ("content",)),
        ({"id": 7, "data": {"body": {"plain": PROSE}}, "n": "a"}, ("data.body.plain",)),
        ({"title": "a", "paragraphs": [PROSE, PROSE]}, ("paragraphs",)),
        ({"text": None, "body": PROSE}, ("body",)),
        ({"prompt": PROSE * 9, "messages": [{"role": "user", "content": "a"}]}, ("messages",)),
        ({"messages": "none", "story": PROSE}, ("story",)),
        ({"conversations": [{"from": "human", "value": "a"}]}, ("conversations",)),
        ({"标题": PROSE * 3, "内容": "君来召我。", "赏析": PROSE * 9}, ("内容",)),
    ],
)
def test_field_of_the_text_is_chosen(record: dict[str, Any], names: tuple[str, ...]) -> None:
    assert choose([record] * 3).names == names


def test_first_records_decide_together() -> None:
    assert choose([{"a": "x" * 10, "b": "x" * 9}, {"a": "x", "b": "x" * 9}]).names == ("b",)
    assert choose([{"b": PROSE}, {"text": "a"}]).names == ("text",)
    assert choose([]) == FieldChoice()


@pytest.mark.parametrize(
    ("records", "requested", "message", "hint"),
    [
        ([{"content": 7, "url": "a"}], (), "no field text; fields: content, url", "pass --text-field url"),
        ([{"ask": "ab", "answer": "abc", "id": "1"}], (), "fields: ask, answer, id", "--text-field ask,answer"),
        ([{"name": "某", "description": "某人，字子某。"}], (), "no field text", "--text-field description"),
        ([{"content": PROSE, "url": "a"}], ("body",), "no field body; fields: content, url", "--text-field content"),
        ([{"n": 1, "of": [1, 2]}], (), "no field text; fields: n, of", "no field holds text"),
        ([{"a": {"b": "xx"}, "c": "yy"}], (), "fields: a.b, c", "pass --text-field"),
        ([{f"f{n}": "x" for n in range(20)}], (), "f11, …", "for example f0"),
    ],
)  # fmt: skip
def test_missing_field_names_the_fields_that_are_there(
    records: list[dict[str, Any]], requested: tuple[str, ...], message: str, hint: str
) -> None:
    with pytest.raises(BadData) as caught:
        choose(records, requested)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_source_of_several_lines_is_the_text_of_a_notebook() -> None:
    cell = {"cell_type": "code", "metadata": {}, "outputs": [], "source": ["import os\n", "print(os.name)"]}
    choice = choose([cell, cell | {"source": "# Title"}])
    assert choice.names == ("source",)
    assert choice.text_of(cell) == "import os\nprint(os.name)"
    assert note_on(choice, [cell]) == "text from field source"


def test_styled_text_of_a_telegram_message_is_joined() -> None:
    link = {"type": "link", "text": "a.b"}
    choice = choose([{"text": "a"}, {"text": ["see ", link, "."]}])
    assert choice.text_of({"text": ["see ", link, "."]}) == "see a.b."
    assert choice.text_of({"text": [link]}) == "a.b"
    assert choice.text_of({"text": [{"type": "photo", "text": None}]}) is None
    assert choice.text_of({"text": [{"text": "a"}, {"text": "b"}]}) is None


@pytest.mark.parametrize(
    ("record", "hint"),
    [
        ({"kind": "a", "description": PROSE, "n": "1"}, "pass --text-field description"),
        ({"kind": "a", "url": PROSE.replace(" ", "")}, "pass --text-field kind"),
    ],
)
def test_field_with_by_far_the_most_text_is_proposed(record: dict[str, Any], hint: str) -> None:
    with pytest.raises(BadData) as caught:
        choose([record])
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("record", "note"),
    [
        (
            {"标题": "a", "问题": PROSE * 2, "回答": PROSE, "n": "1"},
            "text from field 问题; not read: 回答; --text-field 问题,回答 joins them",
        ),
        (
            {"instruction": PROSE, "input": "a", "output": PROSE * 2},
            "text from field output; not read: instruction; --text-field instruction,output joins them; "
            "clean --profile chat reads them as conversations",
        ),
        (
            {"conversations": [{"from": "human", "value": PROSE}], "url": PROSE, "id": "7"},
            "text from field conversations; clean --profile chat reads them as conversations",
        ),
        ({"body": PROSE * 3, "code": "1" * 20, "title": PROSE, "meta": {"notes": PROSE}}, "text from field body"),
        (
            {"body": PROSE, "summary": PROSE[9:]},
            "text from field body; not read: summary; --text-field body,summary joins them",
        ),
    ],
)
def test_note_names_fields_with_much_text_that_are_not_read(record: dict[str, Any], note: str) -> None:
    assert note_on(choose([record] * 3), [record] * 3) == note


def test_records_that_may_be_conversations_say_so_when_no_field_dominates() -> None:
    with pytest.raises(BadData) as caught:
        choose([{"prompt": PROSE, "completion": PROSE}])
    assert caught.value.hint.endswith("prompt,completion; clean --profile chat reads them as conversations")


@pytest.mark.parametrize(
    ("value", "texts", "note"),
    [
        ({"chapters": {"1": [PROSE, PROSE], "2": ["a"]}}, [f"{PROSE}\n{PROSE}", "a"], ""),
        ({"title": "b", "chapters": {"1": "a", "2": PROSE}}, ["a", PROSE], ""),
        ({"第一回": "a", "第二回 风雪": ["第二回 风雪", "b"], "序": "c"}, ["第一回\na", "第二回 风雪\nb", "序\nc"], ""),
        ({"a": "b", "chapters": {"Chapter One": "c", "Chapter 2": "d"}}, ["Chapter One\nc", "Chapter 2\nd"], ""),
        ({"book": PROSE, "section": "a"}, [{"book": PROSE, "section": "a"}], ""),
        (
            {"train": [{"a": PROSE}] * 2, "test": [{"a": PROSE}], "tags": ["b"]},
            [{"a": PROSE}] * 2,
            "records from train; not read: test; save each as a file to read them too",
        ),
    ],
)
def test_all_of_a_json_object_is_read_or_named(value: Any, texts: list[Any], note: str) -> None:
    assert entries(value) == texts
    assert note_on_entries(value) == note


def test_requested_fields_are_joined_by_a_blank_line() -> None:
    choice = choose([{"q": "a", "meta": {"x.y": "b"}}], ("q,meta.x.y",))
    assert choice.names == ("q", "meta.x.y")
    assert choice.text_of({"q": "why?", "meta": {"x.y": "so"}}) == "why?\n\nso"
    assert choice.text_of({"q": "why?", "meta": None}) == "why?"
    assert choice.text_of({"other": "a"}) is None
    assert split_names(["a, b", "c"]) == ("a", "b", "c")
    assert str(choice) == "fields q, meta.x.y"


def test_chat_messages_become_turns() -> None:
    openai = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "image_url", "image_url": "a"}]},
        {"role": "assistant", "content": "She.\nAnd he.", "tool_calls": None},
        {"role": "tool", "content": None},
    ]
    sharegpt = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "She."}]
    assert FieldChoice(("messages",)).text_of({"messages": openai}) == (
        "system: Be brief.\n\nuser: Who?\n\nassistant: She.\nAnd he."
    )
    assert FieldChoice(("c",)).text_of({"c": sharegpt}) == "user: Who?\n\nassistant: She."
    others: tuple[Any, ...] = ([{"a": 1}], [1], ["a", 1], [], {}, 7, None)
    for other in others:
        assert FieldChoice(("c",)).text_of({"c": other}) is None


def test_title_is_a_field_of_its_own() -> None:
    assert title_of({"title": "a"}, FieldChoice()) == "a"
    assert title_of({"title": "a"}, FieldChoice(("title",))) == ""
    assert title_of({"title": 7}, FieldChoice()) == ""
