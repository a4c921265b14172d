"""Conversations and preference pairs as the input of `start --from RUN`: kind, number, and prompts to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.clean.chat.formats import FORMS, HELD_OUT, PREFERENCES, Refused, kind_of, turns_of
from pipeline.errors import BadData
from pipeline.readers import fields, readers
from pipeline.runtime.ledger import Ledger
from pipeline.runtime.terminal import counted, data_size
from pipeline.start.decide import InputOptions, Lines

_PROMPTS = 3
_MAX_PROMPT = 80  # characters


@dataclass(frozen=True)
class Conversations:
    """Survey of the input. `kind` is "chat" or "preferences", `prompts` are first turns of users.

    The prompts are from held-out records if some are marked as such.
    """

    kind: str
    records: int
    bytes: int
    prompts: tuple[str, ...]

    @property
    def noun(self) -> str:
        return "preference pairs" if self.kind == PREFERENCES else "conversations"


def survey(paths: Sequence[Path]) -> Conversations:
    """Survey the records of files. Raises BadData if the first is not a conversation, or if a file is damaged."""
    kind, count, prompts = "", 0, dict[str, bool]()
    for path in paths:
        for document in readers.read_documents(path, Ledger(), lambda reject: None, text_fields=fields.RECORD):
            kind = kind or kind_of(document.meta)
            if not kind:
                raise BadData(f"{path}: no conversations", hint=f"expected records with {FORMS}")
            count += 1
            if (text := _first_turn(document.meta)) and len(text) <= _MAX_PROMPT:
                prompts.setdefault(text, document.meta.get(HELD_OUT) is True)
    if not count:
        raise BadData(f"{', '.join(map(str, paths))}: no conversations", hint=f"expected records with {FORMS}")
    candidates = [text for text, is_held_out in prompts.items() if is_held_out] or list(prompts)
    step = max(len(candidates) // _PROMPTS, 1)
    size = sum(path.stat().st_size for path in paths)
    return Conversations(kind, count, size, tuple(candidates[::step][:_PROMPTS]))


def _first_turn(record: Any) -> str:
    """Return the first turn of the user, "" if the record is invalid: `clean` reports that."""
    try:
        turns = turns_of(record)
    except Refused:
        return ""
    return next((turn.content.strip() for turn in turns if turn.role == "user"), "")


def recipe_sections(
    conversations: Conversations, sources: Sequence[str], options: InputOptions, parent: str, minutes: float | None
) -> dict[str, Any]:
    """Return the sections of the recipe that tunes the run `parent`; without `minutes`, for the default epochs."""
    return {
        "download": {"source": list(sources), **options.download()},
        "clean": {"profile": "chat", **options.clean()},
        "tokenizer": {"use": parent},
        "train": {"parent": parent, **({"minutes": minutes} if minutes else {})},
        "sample": {"prompts": list(conversations.prompts), "max_tokens": 60},
    }


def describe(conversations: Conversations, sources: Sequence[str], parent: str, minutes: float | None) -> Lines:
    """Return the lines of the plan, as headings and contents."""
    task = "dpo" if conversations.kind == PREFERENCES else "sft"
    size = data_size(conversations.bytes)
    length = f"{counted(minutes, 'minutes')} (--minutes)" if minutes else "epochs by the size of the text"
    return [
        ("text", f"{', '.join(sources)} {size}; {counted(conversations.records, conversations.noun)}"),
        ("tokens", f"the tokenizer of {parent}, with the tokens of a chat template"),
        ("model", f"{parent}, all weights"),
        ("training", f"{task}; {length}"),
    ]
