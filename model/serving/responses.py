"""What a completion is told: in OpenAI's shape, whole or as server-sent events."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from model.generation.sampling import Candidate
from model.serving.requests import Asked, Prompt, error_body
from model.serving.scheduler import Closing, News, Order, Unfinished
from pipeline.tokenizers import END_OF_TEXT, Tokenizer, Unfolding

_ENDS = {"length": "length", "stop": "stop", "end of text": "stop"}
_NEVER = -9999.0  # what OpenAI says of a probability of 0


@dataclass
class _Choice:
    """One text as it is told: how much of it has been, and the probabilities of tokens that have not."""

    index: int
    prompt: Prompt
    unfolding: Unfolding
    told: int = 0  # characters
    read: int = 0  # characters of the tokens so far, of which a stop may hold some back
    tokens: int = 0
    waiting: list[tuple[int, str, float, dict[str, float]]] = field(default_factory=list)


class Answer:
    """What one request is told, at once by `whole` or piece by piece by `events`."""

    def __init__(self, asked: Asked, prompts: Sequence[Prompt], order: Order, tokenizer: Tokenizer, model: str) -> None:
        self.order = order
        self._asked, self._prompts, self._tokenizer = asked, prompts, tokenizer
        repeated = [prompt for prompt in prompts for _ in range(asked.n)]
        counts = tokenizer.kind == "integers"  # which stand apart from those of the prompt
        self._joint = " → " if counts else ""
        self._choices = [
            _Choice(index, prompt, Unfolding(tokenizer, None if counts or not prompt.ids else prompt.ids[-1]))
            for index, prompt in enumerate(repeated)
        ]
        self._frame = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self) -> bytes:
        """The whole answer as JSON. Raises Unfinished."""
        pieces: list[list[dict[str, Any]]] = [[self._piece(each)] for each in self._choices]
        async for news in self.order.news():
            pieces[news.number] += self._take(news)
        return self._framed([_joined(each) for each in pieces], usage=self._usage())

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events, also of what it ends with before its end."""
        if self._asked.echo:
            for choice in self._choices:
                yield _event(self._framed([self._piece(choice)]))
        try:
            async for news in self.order.news():
                for piece in self._take(news):
                    yield _event(self._framed([piece]))
        except Unfinished as error:
            status = 503 if isinstance(error, Closing) else 500
            yield _event(error_body(status, str(error)))
        else:
            if self._asked.stream_options.include_usage:
                yield _event(self._framed([], usage=self._usage()))
        yield _event(b"[DONE]")

    def _framed(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return msgspec.json.encode({**self._frame, "choices": choices, **more})

    def _usage(self) -> dict[str, int]:
        read, made = sum(len(each.ids) for each in self._prompts), sum(each.tokens for each in self._choices)
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    def _piece(self, choice: _Choice) -> dict[str, Any]:
        """What comes before anything is made: nothing, or the prompt."""
        text = choice.prompt.text + self._joint if self._asked.echo else ""
        return {"text": text, "index": choice.index, "logprobs": None, "finish_reason": None}

    def _take(self, news: News) -> list[dict[str, Any]]:
        """What a token lets be told: one piece, or none as yet."""
        choice, text = self._choices[news.number], news.token.text
        if news.token.chosen.token_id != self._tokenizer.end_of_text:
            choice.tokens += 1
            if self._asked.logprobs is not None:
                choice.waiting.append(self._probabilities(choice, news))
        choice.told += len(text)
        if not (text or news.ended):
            return []
        reason = _ENDS[news.ended] if news.ended else None
        logprobs = None if self._asked.logprobs is None else _logprobs(choice, news.ended)
        return [{"text": text, "index": choice.index, "logprobs": logprobs, "finish_reason": reason}]

    def _probabilities(self, choice: _Choice, news: News) -> tuple[int, str, float, dict[str, float]]:
        chosen, offset = news.token.chosen, choice.read
        choice.read += len(choice.unfolding.add(chosen.token_id))
        likely = news.token.candidates[: self._asked.logprobs]
        best = {self._spelled(each): _log(each.probability) for each in likely}
        if likely:
            best[self._spelled(chosen)] = _log(chosen.probability)  # as OpenAI does, so that there may be one more
        return offset, self._spelled(chosen), _log(chosen.probability), best

    def _spelled(self, candidate: Candidate) -> str:
        """A token as text, or as bytes where it is only a part of a character."""
        if candidate.token_id == self._tokenizer.end_of_text:
            return END_OF_TEXT
        spelled = self._tokenizer.spell(candidate.token_id, self._tokenizer.end_of_text)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _logprobs(choice: _Choice, ended: str) -> dict[str, list[Any]]:
    """Of the tokens whose text has been told. Those of a stop are never told."""
    whole = ended in ("length", "end of text")
    ready = [each for each in choice.waiting if whole or each[0] < choice.told]
    choice.waiting = choice.waiting[len(ready) :]
    return {
        "tokens": [text for _, text, _, _ in ready],
        "token_logprobs": [chosen for _, _, chosen, _ in ready],
        "top_logprobs": [best for _, _, _, best in ready],
        "text_offset": [offset for offset, _, _, _ in ready],
    }


def _joined(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    told = [each["logprobs"] for each in pieces if each["logprobs"]]
    logprobs = {name: [entry for each in told for entry in each[name]] for name in told[0]} if told else None
    return {**pieces[-1], "text": "".join(each["text"] for each in pieces), "logprobs": logprobs}


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else _NEVER


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
