"""Join cleaned turns into the documents of a corpus, and refuse conversations that cannot be trained on.

The text of a document is its turns, separated by blank lines. It is what is deduplicated, filtered and counted. The
fields `messages`, or `chosen` and `rejected`, hold the same text by turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.clean.cleaner import Page
from pipeline.clean.rule import Effect
from pipeline.clean.utf16 import count_characters, join_documents, split_documents

BETWEEN = "\n\n"
MARKED = "held out"  # a count of the rule: conversations that their record marks for validation
RULE = "turns"  # in the report: removes white space at the ends of turns, adds blank lines between them


class TurnRole(NamedTuple):
    """Position of a text of a task in its record: `part` and `role` as in `formats.Turn`."""

    part: str
    role: str
    is_first: bool = False  # of its conversation
    is_held_out: bool = False


class Refusal(NamedTuple):
    """A rejected conversation: the index of its first text in the task, the reason, and its text."""

    origin: int
    reason: str
    text: str


def join_turns(page: Page, roles: Sequence[TurnRole], starts: Sequence[int]) -> list[Refusal]:
    """Join the turns of each conversation of a page into one document; return the refused conversations.

    `roles` has a role for each text. `starts` are the indices of the first texts of conversations.
    """
    texts = split_documents(page.array)
    contents = [text.strip() for text in texts]
    effect = page.effects.setdefault(RULE, Effect())
    effect.removed += sum(map(len, texts)) - sum(map(len, contents))
    joined, origins, refused = [], [], []
    for start, end in zip(starts, [*starts[1:], len(texts)], strict=True):
        turns = list(zip(roles[start:end], contents[start:end], strict=True))
        text = BETWEEN.join(content for _, content in turns)
        effect.added += len(BETWEEN) * (len(turns) - 1)
        if reason := _refusal(turns):
            refused.append(Refusal(start, reason, text))
            continue
        effect.counts[MARKED] += turns[0][0].is_held_out
        joined.append(text)
        origins.append(start)
        page.turns[start] = _fields(turns)
    page.array = join_documents(joined)
    page.origin, page.titles = np.array(origins, np.int64), [""] * len(joined)
    page.size = sum(map(len, joined)) + sum(len(refusal.text) for refusal in refused)
    assert page.size >= count_characters(page.array)
    return refused


def _refusal(turns: Sequence[tuple[TurnRole, str]]) -> str:
    """Return the reason to refuse a conversation, "" if roles alternate and it ends with an answer."""
    if not all(content for _, content in turns):
        return "empty-turn"
    parts = [role.part for role, _ in turns]
    roles = [role.role for role, _ in turns if role.part != "rejected"]
    if roles[:1] == ["system"]:
        del roles[0]
    if not roles or roles[-1] != "assistant":
        return "no-answer"
    if roles != [("user", "assistant")[index % 2] for index in range(len(roles))]:
        return "roles-do-not-alternate"
    if parts[-1] == "rejected":
        if turns[-1][0].role != "assistant":
            return "no-answer"
        if turns[-1][1] == turns[-2][1]:
            return "equal-answers"
    return ""


def _fields(turns: Sequence[tuple[TurnRole, str]]) -> bytes:
    """Return the fields of a conversation or a pair as JSON without braces: they follow the text in its line."""
    messages = [{"role": role.role, "content": content} for role, content in turns]
    if turns[-1][0].part == "rejected":
        *prompt, chosen, rejected = messages
        fields = {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected]}
    else:
        fields = {"messages": messages}
    return msgspec.json.encode(fields).removeprefix(b"{").removesuffix(b"}")
