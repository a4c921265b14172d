"""Random conversations, and the slow definition of their ids: turn by turn, with the bytes of each token."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pipeline.tokenizers import ChatTokenizer, Tokenizer

FRAGMENTS = (
    *("the inkstone", " and", " a", "don't", "Once", " 3.14", "ing", "\n", "\n\n", " ", "  ", "\t", "\r\n", ".", ", "),
    *("阿渊", "磨墨", "砚台", "却说", "。", "，", "？", "“", "”", "\u3000", "龘", "𠮷", "é", "e\u0301", "🙂", "한국어"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>", "[SEP]", "<|im_", "assistant\n", "{{ x }}", "{% if %}"),
    *("\ufdd0", "\ufdd1", "\ufdd03", "▁", "-", "/", "_", "#"),
)


def conversations(count: int, seed: int = 1) -> list[list[dict[str, str]]]:
    """Return random conversations of one to four rounds; a third begin with a system message."""
    dice = random.Random(seed)
    return [_conversation(dice) for _ in range(count)]


def _conversation(dice: random.Random) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": _text(dice)}] if not dice.randrange(3) else []
    for _ in range(dice.randint(1, 4)):
        messages += [{"role": role, "content": _text(dice)} for role in ("user", "assistant")]
    return messages


def _text(dice: random.Random) -> str:
    while not (text := "".join(dice.choices(FRAGMENTS, k=dice.randint(1, 8)))).strip():
        pass
    return text


def slow_ids(tokenizer: ChatTokenizer, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """Return the ids and the mask of a ChatML conversation, from the base tokenizer and the bytes of its tokens."""
    start, end = tokenizer.special["<|im_start|>"], tokenizer.special["<|im_end|>"]
    pairs: list[tuple[int, bool]] = []
    for message in messages:
        is_answer = message["role"] == "assistant"
        header, content = _turn(tokenizer.base, message["role"] + "\n", message["content"], divided=is_answer)
        pairs += [(start, False), *((token, False) for token in header), *((token, is_answer) for token in content)]
        pairs += [(end, is_answer), *((token, False) for token in tokenizer.base.encode("\n"))]
    return [token for token, _ in pairs], [flag for _, flag in pairs]


def _turn(base: Tokenizer, header: str, content: str, *, divided: bool) -> tuple[list[int], list[int]]:
    """Return the ids of a header and of what follows it; where a token lies across the two, each by itself."""
    ids = base.encode(header + content)
    if not divided:
        return ids, []
    alone = base.encode(header)
    if ids[: len(alone)] == alone and alone[-1:] != [base.unknown_id]:
        return alone, ids[len(alone) :]
    return alone, base.encode(content)


def as_openai(messages: list[dict[str, str]]) -> dict[str, object]:
    return {"id": 7, "messages": messages}


def as_sharegpt(messages: list[dict[str, str]]) -> dict[str, object]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in messages]}


def as_alpaca(messages: list[dict[str, str]]) -> dict[str, object]:
    """Write a conversation of one round, whose question has its first line as the instruction."""
    *system, question, answer = messages
    instruction, _, given = question["content"].partition("\n")
    record: dict[str, object] = {"instruction": instruction, "input": given, "output": answer["content"]}
    return record | ({"system": system[0]["content"]} if system else {})


def as_prompt(messages: list[dict[str, str]]) -> dict[str, object]:
    return {"prompt": messages[:-1], "completion": messages[-1]["content"]}


def as_pair(messages: list[dict[str, str]]) -> dict[str, object]:
    """Write a preference pair, whose rejected answer is the chosen one and a word."""
    rejected = messages[-1]["content"] + " no"
    return {"prompt": "", "chosen": messages, "rejected": [*messages[:-1], {"role": "assistant", "content": rejected}]}


FORMS = {form.__name__.removeprefix("as_"): form for form in (as_openai, as_sharegpt, as_alpaca, as_prompt, as_pair)}


def conversations_for(form: str, count: int, seed: int = 1) -> list[list[dict[str, str]]]:
    """Return random conversations that a form can hold, without white space at the ends of their turns."""
    many = [[turn | {"content": turn["content"].strip()} for turn in turns] for turns in conversations(count, seed)]
    if form != "alpaca":
        return many
    rounds = [turns[: 2 + (turns[0]["role"] == "system")] for turns in many]
    return [turns for turns in rounds if "\n\n" not in turns[-2]["content"]]
