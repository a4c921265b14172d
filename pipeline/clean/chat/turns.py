"""Join cleaned turns into the documents of a corpus, and refuse conversations that cannot be trained on.

The text of such a document is its turns with blank lines between them: what is compared, filtered and counted. The
messages stand beside it, with the same characters.
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
MARKED = "held out"  # a case of the rule: conversations whose record says that they are for validation
RULE = "turns"  # its effects: white space at the ends of turns, and the blank lines between them


class TurnRole(NamedTuple):
    """The part of a record that a text of a task is, as in `formats.Turn`, and who says it."""

    part: str
    role: str
    is_first: bool = False  # of its conversation
    is_held_out: bool = False


class Refusal(NamedTuple):
    """A conversation that is rejected: its first text in the task, the reason and its text."""

    origin: int
    reason: str
    text: str


def join_turns(page: Page, roles: Sequence[TurnRole], firsts: Sequence[int]) -> list[Refusal]:
    """Replace the texts of a page by their conversations; return those that are refused.

    `roles` has a role for each text. `firsts` are the indices of the texts with which a conversation begins.
    """
    texts = split_documents(page.array)
    contents = [text.strip() for text in texts]
    effect = page.effects.setdefault(RULE, Effect())
    effect.removed += sum(map(len, texts)) - sum(map(len, contents))
    joined, origins, refused = [], [], []
    for first, end in zip(firsts, [*firsts[1:], len(texts)], strict=True):
        turns = list(zip(roles[first:end], contents[first:end], strict=True))
        text = BETWEEN.join(content for _, content in turns)
        effect.added += len(BETWEEN) * (len(turns) - 1)
        if reason := _refusal(turns):
            refused.append(Refusal(first, reason, text))
            continue
        effect.counts[MARKED] += turns[0][0].is_held_out
        joined.append(text)
        origins.append(first)
        page.turns[first] = _fields(turns)
    page.array = join_documents(joined)
    page.origin, page.titles = np.array(origins, np.int64), [""] * len(joined)
    page.size = sum(map(len, joined)) + sum(len(refusal.text) for refusal in refused)
    assert page.size >= count_characters(page.array)
    return refused


def _refusal(turns: Sequence[tuple[TurnRole, str]]) -> str:
    """Return the reason to refuse a conversation, "" for one of alternating roles that ends with an answer."""
    if not all(content for _, content in turns):
        return "empty-turn"
    parts = [role.part for role, _ in turns]
    spoken = [role.role for role, _ in turns if role.part != "rejected"]
    if spoken[:1] == ["system"]:
        del spoken[0]
    if not spoken or spoken[-1] != "assistant":
        return "no-answer"
    if spoken != [("user", "assistant")[index % 2] for index in range(len(spoken))]:
        return "roles-do-not-alternate"
    if parts[-1] == "rejected":
        if turns[-1][0].role != "assistant":
            return "no-answer"
        if turns[-1][1] == turns[-2][1]:
            return "equal-answers"
    return ""


def _fields(turns: Sequence[tuple[TurnRole, str]]) -> bytes:
    """Return the fields of a conversation or a pair, as they follow the text in its line."""
    messages = [{"role": role.role, "content": content} for role, content in turns]
    if turns[-1][0].part == "rejected":
        *prompt, chosen, rejected = messages
        fields = {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected]}
    else:
        fields = {"messages": messages}
    return msgspec.json.encode(fields).removeprefix(b"{").removesuffix(b"}")
