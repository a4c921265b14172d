"""The bundled conversations and preference pairs: their number, shape, languages and split."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pipeline

FOLDER = Path(pipeline.__file__).parent / "sample"
NOVEL = (FOLDER / "yanshan.txt").read_text(encoding="utf-8-sig")
HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]")
SYSTEM_SHARE, ROUNDS_SHARE, CHINESE_SHARE = (0.08, 0.12), (0.2, 0.3), (0.6, 0.72)

Messages = list[dict[str, str]]


def read(name: str) -> list[dict[str, Any]]:
    """Return the objects of a file, one of each line."""
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


CONVERSATIONS: list[Messages] = [line["messages"] for line in read("conversations.jsonl")]
PAIRS = read("preferences.jsonl")


def errors(messages: Messages) -> list[str]:
    """Describe what is wrong with a conversation: roles that do not alternate, empty or padded turns, no answer."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    wrong = []
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        wrong.append(f"roles {roles}")
    wrong += [f"turn {m['content']!r}" for m in messages if not m["content"] or m["content"] != m["content"].strip()]
    wrong += [f"fields {sorted(m)}" for m in messages if set(m) != {"role", "content"}]
    return wrong


def is_chinese(text: str) -> bool:
    """Return whether a question is Chinese; both languages may quote a word of the other."""
    return len(HAN.findall(text)) > len(re.findall("[A-Za-z]", text))


def share(count: int, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= count / len(CONVERSATIONS) <= bounds[1]


def test_conversations_are_valid_and_distinct() -> None:
    assert len(CONVERSATIONS) >= 320
    assert not [wrong for messages in CONVERSATIONS for wrong in errors(messages)]
    assert Counter(map(json.dumps, CONVERSATIONS)).most_common(1)[0][1] == 1


def test_two_thirds_are_chinese_a_quarter_has_rounds_and_a_tenth_a_system_message() -> None:
    assert share(sum(is_chinese(c[-2]["content"]) for c in CONVERSATIONS), CHINESE_SHARE)
    assert share(sum(len([m for m in c if m["role"] == "user"]) > 1 for c in CONVERSATIONS), ROUNDS_SHARE)
    assert share(sum(c[0]["role"] == "system" for c in CONVERSATIONS), SYSTEM_SHARE)


def test_answers_are_short_sentences_in_the_language_of_the_question() -> None:
    for question, answer in (turns for c in CONVERSATIONS for turns in pairwise(c) if turns[1]["role"] == "assistant"):
        text, chinese = answer["content"], is_chinese(question["content"])
        assert bool(HAN.search(text)) == chinese, text
        assert text[-1] in ("。！？" if chinese else ".!?"), text
        assert len(text) <= 60 if chinese else len(text.split()) <= 30, text


def test_titles_of_chapters_in_answers_are_those_of_the_novel() -> None:
    titles = re.findall(r"“([^”]+　[^”]+)”", "\n".join(m["content"] for c in CONVERSATIONS for m in c))
    assert len(titles) >= 5
    assert all(title in NOVEL for title in titles)


def test_pairs_share_a_prompt_and_differ_in_the_last_answer() -> None:
    assert len(PAIRS) == 240
    for pair in PAIRS:
        chosen, rejected = pair["chosen"], pair["rejected"]
        assert not errors(chosen) + errors(rejected)
        assert chosen[:-1] == rejected[:-1]
        assert chosen[-1] != rejected[-1]
        assert pair["prompt"] == chosen[0]["content"]


def test_60_pairs_are_held_out_whose_prompts_and_answers_are_in_no_other_pair() -> None:
    held_out = [pair for pair in PAIRS if pair.get("held_out")]
    assert len(held_out) == 60
    for part in (slice(None, -1), slice(-1, None)):
        texts = Counter(json.dumps(pair["chosen"][part]) for pair in PAIRS)
        assert all(texts[json.dumps(pair["chosen"][part])] == 1 for pair in held_out)


def test_a_planted_error_is_described() -> None:
    user, answer = {"role": "user", "content": "谁"}, {"role": "assistant", "content": "阿渊。"}
    assert not errors([user, answer])
    assert errors([user]) == ["roles ['user']"]
    assert errors([user, user, answer]) == ["roles ['user', 'user', 'assistant']"]
    assert errors([user, {"role": "assistant", "content": ""}]) == ["turn ''"]
