"""Chats with a run: encode messages as a prompt, and answer the turns of a conversation.

torch is imported with the model only.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from model.config import GPTConfig
from model.generation.session import Session, encode
from pipeline.errors import BadConfig, BadData, TryAgain
from pipeline.tokenizers import ChatTokenizer, Unencodable

if TYPE_CHECKING:
    from model.generation.sampling import SampleOptions

Messages = Sequence[dict[str, str]]


class TooLong(BadConfig):
    """The last turn of a chat does not fit into the block."""


class ChatPrompt(NamedTuple):
    """Ids of messages up to the beginning of an answer. `dropped` is the number of messages that were left out."""

    ids: list[int]
    dropped: int


class Answer(NamedTuple):
    """An answer. `ended` is the reason for its end as in `Sample.ended`, or "interrupted"."""

    text: str
    ended: str
    dropped: int


def encode_chat(messages: Messages, tokenizer: ChatTokenizer, block_size: int, max_tokens: int) -> ChatPrompt:
    """Encode the latest turns that leave room for an answer of `max_tokens`, or of half a block if that is less.

    System messages at the beginning always stay. Raises TooLong if the last turn alone does not fit, BadData if
    the template refuses the messages or the tokenizer cannot encode them.
    """
    start = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system, turns = messages[:start], messages[start:]
    starts = sorted({0, *(index for index, turn in enumerate(turns) if turn["role"] == "user")})
    room = block_size - min(max(max_tokens, 1), block_size // 2)

    def encoded(first: int) -> list[int]:
        try:
            return tokenizer.encode_messages([*system, *turns[first:]], add_generation_prompt=True)
        except Unencodable as error:
            raise BadData(f"the tokenizer cannot encode the chat: {error}", hint="leave out rare characters") from None

    index = bisect.bisect_left(starts, True, key=lambda first: len(encoded(first)) <= room)
    first = starts[min(index, len(starts) - 1)]
    ids = encoded(first)
    if len(ids) >= block_size:
        raise TooLong(
            f"the last turn has {len(ids):,} tokens, but the model reads {block_size:,} at a time",
            hint="write a shorter turn",
        )
    return ChatPrompt(ids, first)


class Chat:
    """A conversation with a run. `messages` are its turns, with the system message first if there is one.

    Raises BadConfig for a run without a chat template.
    """

    def __init__(self, session: Session, options: SampleOptions, system: str = "") -> None:
        if not isinstance(session.tokenizer, ChatTokenizer):
            name = session.run.manifest.name
            raise BadConfig(
                f"{session.run.ref} has no chat template: it only continues text",
                hint=f"`inkstone sample {name}` continues a text; docs/chat.md tunes a run on conversations",
            )
        self.run = session.run
        self._session, self._options, self._tokenizer = session, options, session.tokenizer
        self._answers = 0
        self.messages: list[dict[str, str]] = []
        self.reset(system)

    @property
    def system(self) -> str:
        """Content of the system message, "" without one."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else ""

    def reset(self, system: str) -> None:
        """Begin a new conversation; without `system` it has no system message."""
        self.messages = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str, write: Callable[[str], object], stopped: threading.Event | None = None) -> Answer:
        """Answer a turn of the user, and pass the text of the answer to `write` piece by piece.

        Both turns are appended to `messages`. After Ctrl-C the answer is what was generated until then. Raises
        BadConfig or BadData, and appends nothing, if the turn cannot be encoded; TryAgain if `stopped` is set.
        """
        encode(self._tokenizer, text, self._session.report)  # reports unknown characters
        turn = {"role": "user", "content": text}
        block_size = self._session.run.manifest.option("model", GPTConfig).block_size
        prompt = encode_chat([*self.messages, turn], self._tokenizer, block_size, self._options.max_tokens)
        from model.generation.engine import Engine, TokenSequence, stream

        options = replace(self._options, seed=self._options.seed + self._answers)
        sequence = TokenSequence(self._tokenizer, prompt.ids, options, options.seed)
        try:
            for token in stream(Engine(self._session.model, 1), sequence):
                write(token.text)
                if stopped and stopped.is_set():
                    raise TryAgain("stopped by a signal", hint="run the same command again for the same answers")
        except KeyboardInterrupt:
            sequence.finish_reason = "interrupted"
        self._answers += 1
        self.messages += [turn, {"role": "assistant", "content": sequence.text}]
        return Answer(sequence.text, sequence.finish_reason, prompt.dropped)
