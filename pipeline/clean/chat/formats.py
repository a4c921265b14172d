"""Parse a record of any known form into the turns of a conversation.

    messages, conversations            [{"role": …, "content": …}] of OpenAI, [{"from": …, "value": …}] of ShareGPT
    instruction, input, output         Alpaca; `input` may be missing
    prompt and completion              also question and answer, query and response
    chosen, rejected                   a preference pair: two answers as texts beside a prompt, or two lists of messages
                                       that differ in the last one

A prompt may also be a list of messages. With any form, a field `system` becomes the first message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.readers.fields import ANSWERS, QUESTIONS

CHAT, PREFERENCES = "chat", "preferences"
KINDS = (CHAT, PREFERENCES)
FORMS = "messages, conversations, instruction/output, prompt/completion or chosen/rejected"

_ROLES = {
    **{role: role for role in ("system", "user", "assistant")},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"},
}
_LISTS = ("messages", "conversations", "conversation")
_INPUTS = ("input", "context")


class Turn(NamedTuple):
    """One message. `part` is "chosen" or "rejected" for the last message of a preference pair, else "messages"."""

    part: str
    role: str
    content: str


HELD_OUT = "held_out"
"""The field of a record that is `true` if the record is for validation. A corpus has it in `meta`."""


class Refused(Exception):
    """A record has a known form and invalid content. The message is the reason to reject it."""


def kind_of(record: Any) -> str:
    """Return "chat" or "preferences", the kind of a record by its fields; "" for a record of no known form.

    A question or an answer may be empty: `turns.py` refuses it.
    """
    if not isinstance(record, Mapping):
        return ""
    if record.get("chosen") and record.get("rejected"):
        return PREFERENCES
    if any(isinstance(record.get(name), list) for name in _LISTS):
        return CHAT
    if _field(record, QUESTIONS) and _field(record, ANSWERS):
        return CHAT
    answers = [record[part] for part in ("chosen", "rejected") if part in record]
    return PREFERENCES if len(answers) == 2 and any(answers) else ""


def turns_of(record: Mapping[str, Any]) -> list[Turn]:
    """Return the turns of a record of a known form. Those of a pair end with the chosen and the rejected answer.

    Raises Refused for content that is not text, an unknown role, and a pair without a common prompt.
    """
    if kind_of(record) == PREFERENCES:
        return _pair(record)
    messages = next((record[name] for name in _LISTS if isinstance(record.get(name), list)), None)
    if messages is None:
        question, answer = (record[_field(record, names)] or "" for names in (QUESTIONS, ANSWERS))
        given = _text(record.get(_field(record, _INPUTS)))
        if isinstance(question, str) and given.strip():
            question = f"{question}\n{given}"
        messages = [*_as_messages(question, "user"), *_as_messages(answer, "assistant")]
    return [Turn("messages", role, content) for role, content in _with_system(record, _messages(messages))]


def _pair(record: Mapping[str, Any]) -> list[Turn]:
    prompt = _messages(_as_messages(record.get(_field(record, QUESTIONS)) or [], "user"))
    answers = []
    for part in ("chosen", "rejected"):
        messages = _messages(_as_messages(record[part] or "", "assistant"))
        answers.append(messages if messages[: len(prompt)] == prompt else [*prompt, *messages])
    chosen, rejected = (_with_system(record, messages) for messages in answers)
    if chosen[:-1] != rejected[:-1]:
        raise Refused("prompts-differ")
    turns = [Turn("messages", role, content) for role, content in chosen[:-1]]
    return [*turns, Turn("chosen", *chosen[-1]), Turn("rejected", *rejected[-1])]


def _field(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the first of these fields that is not empty, else the first that is present, "" if none is."""
    present = [name for name in names if name in record]
    return next((name for name in present if record[name]), present[0] if present else "")


def _as_messages(value: Any, role: str) -> list[Any]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _messages(messages: Sequence[Any]) -> list[tuple[str, str]]:
    pairs = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise Refused("no-message")
        role = message.get("role", message.get("from"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            raise Refused("unknown-role")
        pairs.append((_ROLES[role.lower()], _content(message)))
    return pairs


def _content(message: Mapping[str, Any]) -> str:
    """Return the text of a message. In OpenAI's form, the content may be a list of parts."""
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        content = "\n".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise Refused("no-text")
    return content


def _with_system(record: Mapping[str, Any], messages: list[tuple[str, str]]) -> list[tuple[str, str]]:
    system = _text(record.get("system"))
    is_first = system.strip() and messages[:1] != [("system", system)]
    return [("system", system), *messages] if is_first else messages


def _text(value: Any) -> str:
    """Return the text of a field, "" if it is missing. Raises Refused for a value that is not text."""
    if value and not isinstance(value, str):
        raise Refused("no-text")
    return value or ""
