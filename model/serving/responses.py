"""Completion responses in OpenAI's format: one JSON object, or server-sent events."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from model.generation.sampling import Candidate
from model.serving.requests import CompletionRequest, TokenizedPrompt, error_body
from model.serving.scheduler import GenerationFailed, GenerationRequest, ShuttingDown, TokenEvent
from pipeline.tokenizers import END_OF_TEXT, IncrementalDetokenizer, Tokenizer

_FINISH_REASONS = {"length": "length", "stop": "stop", "end of text": "stop"}
_LOG_ZERO = -9999.0  # OpenAI's value for the logarithm of a probability of 0


class _TokenLogprob(NamedTuple):
    offset: int  # characters of generated text before the token
    text: str
    logprob: float
    top: dict[str, float]


@dataclass
class _Choice:
    """State of one choice: characters sent, characters generated (a possible stop text is held back), token count, and
    the log probabilities of tokens whose text is not sent yet."""

    index: int
    prompt: TokenizedPrompt
    detokenizer: IncrementalDetokenizer
    sent: int = 0
    generated: int = 0
    tokens: int = 0
    pending: list[_TokenLogprob] = field(default_factory=list)


class CompletionResponse:
    """Response to one request: complete by `json`, or token by token by `stream`."""

    def __init__(
        self,
        request: CompletionRequest,
        prompts: Sequence[TokenizedPrompt],
        generation: GenerationRequest,
        tokenizer: Tokenizer,
        model: str,
    ) -> None:
        self.generation = generation
        self._request, self._prompts, self._tokenizer = request, prompts, tokenizer
        repeated = [prompt for prompt in prompts for _ in range(request.n)]
        is_counting = tokenizer.kind == "integers"
        self._separator = " → " if is_counting else ""
        self._choices = [
            _Choice(
                index,
                prompt,
                IncrementalDetokenizer(tokenizer, None if is_counting or not prompt.ids else prompt.ids[-1]),
            )
            for index, prompt in enumerate(repeated)
        ]
        self._envelope = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    async def json(self) -> bytes:
        """Wait for all sequences and encode the response. Raises GenerationFailed."""
        chunks: list[list[dict[str, Any]]] = [[self._first_chunk(choice)] for choice in self._choices]
        async for event in self.generation.events():
            chunks[event.index] += self._chunk(event)
        return self._encode([_merge(parts) for parts in chunks], usage=self._usage())

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the response as server-sent events; a failure becomes an error event before the final [DONE]."""
        if self._request.echo:
            for choice in self._choices:
                yield _sse(self._encode([self._first_chunk(choice)]))
        try:
            async for event in self.generation.events():
                for chunk in self._chunk(event):
                    yield _sse(self._encode([chunk]))
        except GenerationFailed as error:
            status = 503 if isinstance(error, ShuttingDown) else 500
            yield _sse(error_body(status, str(error)))
        else:
            if self._request.stream_options.include_usage:
                yield _sse(self._encode([], usage=self._usage()))
        yield _sse(b"[DONE]")

    def _encode(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        return msgspec.json.encode({**self._envelope, "choices": choices, **fields})

    def _usage(self) -> dict[str, int]:
        prompt = sum(len(prompt.ids) for prompt in self._prompts)
        completion = sum(choice.tokens for choice in self._choices)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _first_chunk(self, choice: _Choice) -> dict[str, Any]:
        """Chunk before any generated token: the prompt with `echo`, else empty."""
        text = choice.prompt.text + self._separator if self._request.echo else ""
        return {"text": text, "index": choice.index, "logprobs": None, "finish_reason": None}

    def _chunk(self, event: TokenEvent) -> list[dict[str, Any]]:
        """Convert one token event to at most one response chunk."""
        choice, text = self._choices[event.index], event.token.text
        if event.token.chosen.token_id != self._tokenizer.end_of_text:
            choice.tokens += 1
            if self._request.logprobs is not None:
                choice.pending.append(self._logprob(choice, event))
        choice.sent += len(text)
        if not (text or event.finish_reason):
            return []
        reason = _FINISH_REASONS[event.finish_reason] if event.finish_reason else None
        logprobs = None if self._request.logprobs is None else _sent_logprobs(choice, event.finish_reason)
        return [{"text": text, "index": choice.index, "logprobs": logprobs, "finish_reason": reason}]

    def _logprob(self, choice: _Choice, event: TokenEvent) -> _TokenLogprob:
        token, offset = event.token.chosen, choice.generated
        choice.generated += len(choice.detokenizer.add(token.token_id))
        likeliest = event.token.candidates[: self._request.logprobs]
        top = {self._token_text(candidate): _log(candidate.probability) for candidate in likeliest}
        if likeliest:  # OpenAI adds the sampled token, so there may be one entry more than requested
            top[self._token_text(token)] = _log(token.probability)
        return _TokenLogprob(offset, self._token_text(token), _log(token.probability), top)

    def _token_text(self, candidate: Candidate) -> str:
        """Text of a token, or its bytes in OpenAI's notation if they are only a part of a character."""
        if candidate.token_id == self._tokenizer.end_of_text:
            return END_OF_TEXT
        utf8 = self._tokenizer.token_bytes(candidate.token_id, self._tokenizer.end_of_text)
        try:
            return utf8.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in utf8)


def _sent_logprobs(choice: _Choice, finish_reason: str) -> dict[str, list[Any]]:
    """Remove and return the log probabilities of the tokens whose text was sent; tokens of a stop text never are."""
    flush = finish_reason in ("length", "end of text")
    ready = [entry for entry in choice.pending if flush or entry.offset < choice.sent]
    choice.pending = choice.pending[len(ready) :]
    return {
        "tokens": [entry.text for entry in ready],
        "token_logprobs": [entry.logprob for entry in ready],
        "top_logprobs": [entry.top for entry in ready],
        "text_offset": [entry.offset for entry in ready],
    }


def _merge(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the chunks of one choice into one."""
    parts = [chunk["logprobs"] for chunk in chunks if chunk["logprobs"]]
    logprobs = {name: [entry for part in parts for entry in part[name]] for name in parts[0]} if parts else None
    return {**chunks[-1], "text": "".join(chunk["text"] for chunk in chunks), "logprobs": logprobs}


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else _LOG_ZERO


def _sse(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
