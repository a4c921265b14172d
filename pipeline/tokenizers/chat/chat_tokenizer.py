"""A tokenizer for conversations: a base tokenizer, two special tokens, and a chat template."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pipeline.errors import BadConfig
from pipeline.store import files
from pipeline.tokenizers.chat.template import CHATML, SPECIAL, TURN_END, Message, Part, check_template, render
from pipeline.tokenizers.fast_tokenizer import FastTokenizer
from pipeline.tokenizers.integers import Integers
from pipeline.tokenizers.sentencepiece import SentencePiece
from pipeline.tokenizers.tokenizer import CARD, FlatIds, Tokenizer, TokenizerCard


class ChatCard(TokenizerCard, frozen=True, kw_only=True):
    """Card of a chat tokenizer: the card of its base and the template. The files of the base are in the same folder."""

    base: TokenizerCard
    template: str


class Conversations(NamedTuple):
    """Encoded conversations, one after the other."""

    ids: np.ndarray  # uint32 (N,)
    lengths: np.ndarray  # int64, of each conversation
    mask: np.ndarray  # uint8 (N,), 1 for each id with a loss


class ChatTokenizer:
    """A tokenizer that encodes text as its base does, and conversations by a template.

    The special tokens get the ids after those of the base, unless the base already has them as special tokens. Text
    between two special tokens is encoded as one text, as in transformers. If a token would span the beginning of an
    answer, the text is cut there, so that exactly what the assistant writes has a loss.
    """

    kind = "chat"

    def __init__(self, base: Tokenizer, template: str = CHATML) -> None:
        """Raises BadConfig for a base that cannot encode conversations, BadData for an invalid template."""
        if isinstance(base, ChatTokenizer | Integers):
            raise BadConfig(f"a {base.kind} tokenizer cannot be the base of a chat tokenizer", hint="name another one")
        check_template(template)
        self.base, self.template = base, template
        self.name, self.end_of_text = base.name, base.end_of_text
        self.special = _special_ids(base)
        self.vocab_size = max(base.vocab_size, *(token_id + 1 for token_id in self.special.values()))
        definition = msgspec.json.encode([base.fingerprint, template, self.special])
        self.fingerprint = f"chat:{hashlib.sha256(definition).hexdigest()[:16]}"

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatTokenizer, (self.base, self.template)

    @property
    def end_of_turn(self) -> int:
        """The id after each turn, at which an answer ends."""
        return self.special[TURN_END]

    @property
    def encoder(self) -> str:
        return self.base.encoder

    @encoder.setter
    def encoder(self, name: str) -> None:
        self.base.encoder = name

    @functools.cached_property
    def unknown_id(self) -> int | None:
        return self.base.unknown_id

    @property
    def normalizes(self) -> bool:
        return self.base.normalizes

    @property
    def boundary(self) -> re.Pattern[str] | None:
        return self.base.boundary

    def encode_messages(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        """Return the ids of messages; with `add_generation_prompt`, the beginning of an answer follows them.

        Raises BadData if the template refuses the messages, Unencodable if the base cannot encode them.
        """
        parts = render(self.template, messages, add_generation_prompt=add_generation_prompt)
        return self._join(parts, self.base.encode)[0]

    def text_of(self, messages: Sequence[Message]) -> str:
        """Return a conversation as the template writes it. Raises as `encode_messages`."""
        return "".join(part.text for part in render(self.template, messages))

    def encode_conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation, and True for those with a loss: the answers and their ends of turn.

        Raises as `encode_messages`.
        """
        return self._join(render(self.template, messages), self.base.encode)

    def encode_conversations(self, conversations: Sequence[Sequence[Message]]) -> Conversations:
        """Return what `encode_conversation` returns for each conversation. Every distinct text is encoded once."""
        rendered = [render(self.template, messages) for messages in conversations]
        texts = list(dict.fromkeys(text for parts in rendered for text in _needed_texts(parts)))
        ids, lengths = self.base.encode_batch(texts)
        rows = np.split(ids, np.cumsum(lengths)[:-1]) if texts else []
        encoded = {text: row.tolist() for text, row in zip(texts, rows, strict=True)}
        joined = [self._join(parts, lambda text: encoded.get(text) or self.base.encode(text)) for parts in rendered]
        return Conversations(
            np.array([token for ids, _ in joined for token in ids], np.uint32),
            np.array([len(ids) for ids, _ in joined], np.int64),
            np.array([flag for _, mask in joined for flag in mask], np.uint8),
        )

    def _join(self, parts: Sequence[Part], encode: Callable[[str], Sequence[int]]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        mask: list[bool] = []
        for group in _groups(parts):
            if group[0].is_special:
                rows: list[Sequence[int]] = [[self.special[group[0].text]]]
            else:
                rows = self._encode_runs([part.text for part in group], encode)
            for part, row in zip(group, rows, strict=True):
                ids += row
                mask += [part.has_loss] * len(row)
        return ids, mask

    def _encode_runs(self, runs: Sequence[str], encode: Callable[[str], Sequence[int]]) -> list[Sequence[int]]:
        """Return the ids of each run of a text: those of the joined text, unless a token spans two runs.

        The text is encoded, and every prefix of it that ends with a run. No token spans two runs if the ids of each
        prefix are the first ids of the text, and do not end with the unknown id, which may stand for characters of two
        runs.
        """
        *prefixes, text = accumulate(runs)
        ids = encode(text)
        rows, start = [], 0
        for prefix in prefixes:
            before = encode(prefix)
            if ids[: len(before)] != before or (before and before[-1] == self.unknown_id):
                return [encode(run) for run in runs]
            rows.append(ids[start : len(before)])
            start = len(before)
        return [*rows, ids[start:]]

    def encode(self, text: str) -> list[int]:
        return self.base.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> FlatIds:
        return self.base.encode_batch(texts)

    def decode(self, ids: Iterable[int]) -> str:
        return self.base.decode(token for token in ids if token not in self._special_ids)

    def token_bytes(self, token: int, after: int | None = None) -> bytes:
        if token in self._special_ids:
            return b""
        return self.base.token_bytes(token, None if after in self._special_ids else after)

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    def unknown_characters(self, text: str) -> str:
        return self.base.unknown_characters(text)

    def count_unknown(self, text: str) -> int:
        return self.base.count_unknown(text)

    def normalize(self, text: str) -> str:
        return self.base.normalize(text)

    def save(self, folder: Path) -> None:
        self.base.save(folder)
        base = msgspec.json.decode((folder / CARD).read_bytes(), type=TokenizerCard)
        card = ChatCard(
            kind=self.kind,
            name=self.name,
            vocab_size=self.vocab_size,
            end_of_text=self.end_of_text,
            fingerprint=self.fingerprint,
            base=base,
            template=self.template,
        )
        files.write_file(folder / CARD, msgspec.json.format(msgspec.json.encode(card), indent=2))


def _special_ids(base: Tokenizer) -> Mapping[str, int]:
    """Return the id of each special token: that of the base, or else the next free one."""
    present = _present_ids(base)
    added = [token for token in SPECIAL if token not in present]
    return present | {token: base.vocab_size + index for index, token in enumerate(added)}


def _present_ids(base: Tokenizer) -> dict[str, int]:
    """Return the ids of the special tokens that the base has. Raises BadConfig if text could become one of them."""
    match base:
        case FastTokenizer():
            ids = {text: token_id for token_id, text in base.tokens.items() if text in SPECIAL}
        case SentencePiece():
            ids = {text: token_id for token_id, text in enumerate(base.pieces()) if text in SPECIAL}
        case _:
            return {}
    for token, token_id in ids.items():
        if token_id in base.encode(token):
            raise BadConfig(
                f"{base.name}: a text that spells {token!r} would become this token",
                hint="mark it as special in the tokenizer, or name another one",
            )
    return ids


def _groups(parts: Sequence[Part]) -> list[list[Part]]:
    """Group the parts between two special tokens. A special token is a group of its own."""
    groups: list[list[Part]] = []
    for part in parts:
        if groups and not part.is_special and not groups[-1][0].is_special:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _needed_texts(parts: Sequence[Part]) -> Iterable[str]:
    """Yield the texts that `_encode_runs` encodes for a conversation, unless a token spans two runs."""
    for group in _groups(parts):
        if not group[0].is_special:
            yield from accumulate(part.text for part in group)
