"""Completion responses in OpenAI's format: one JSON object, or server-sent events."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from model.generation.scoring import LOG_ZERO
from model.serving.requests import CompletionRequest, TokenizedPrompt, error_body
from model.serving.scheduler import GenerationFailed, GenerationRequest, ShuttingDown, TokenEvent
from pipeline.tokenizers import END_OF_TEXT, IncrementalDetokenizer, Tokenizer

_ENDS = ("end of text", "end of turn")  # by a token that is not part of the text
_FINISH_REASONS = {"length": "length", "stop": "stop", **dict.fromkeys(_ENDS, "stop")}


class TokenLogprob(NamedTuple):
    """A token of a choice. The first token of a prompt has no log probability."""

    offset: int  # characters of the choice before the token
    token_id: int
    logprob: float | None
    likeliest: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Chunk:
    """A part of a choice. `logprobs` is None unless the request has `logprobs`."""

    index: int
    text: str
    logprobs: Sequence[TokenLogprob] | None
    finish_reason: str | None = None
    is_first: bool = False


@dataclass
class _Choice:
    """State of one choice: characters sent, characters generated (a possible stop text is held back), token count, and
    the log probabilities of tokens whose text is not sent yet."""

    index: int
    prompt: TokenizedPrompt
    detokenizer: IncrementalDetokenizer
    has_begun: bool = False
    sent: int = 0
    generated: int = 0
    tokens: int = 0
    pending: list[TokenLogprob] = field(default_factory=list)


class CompletionResponse:
    """Response to one request: complete by `json`, or token by token by `stream`.

    `notes` are fields of the response besides OpenAI's, such as `warnings`.
    """

    id_prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(
        self,
        request: CompletionRequest,
        prompts: Sequence[TokenizedPrompt],
        generation: GenerationRequest,
        tokenizer: Tokenizer,
        model: str,
        notes: Mapping[str, Any],
    ) -> None:
        self.generation = generation
        self._request, self._prompts, self._tokenizer = request, prompts, tokenizer
        self._notes = dict(notes)  # fields that are not sent yet
        self._token_texts: dict[int, str] = {}
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
            "id": f"{self.id_prefix}-{secrets.token_hex(12)}",
            "object": self.chunk_kind if request.stream else self.kind,
            "created": int(time.time()),
            "model": model,
        }

    async def json(self) -> bytes:
        """Wait for all sequences and encode the response. Raises GenerationFailed."""
        chunks: list[list[Chunk]] = [[] for _ in self._choices]
        async for event in self.generation.events():
            chunks[event.index] += self._chunks(event)
        return self._encode([self.choice(_merge(parts)) for parts in chunks], usage=self._usage())

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the response as server-sent events; a failure becomes an error event before the final [DONE]."""
        try:
            async for event in self.generation.events():
                for chunk in self._chunks(event):
                    yield _sse(self._encode([self.choice_part(chunk)]))
        except GenerationFailed as error:
            status = 503 if isinstance(error, ShuttingDown) else 500
            yield _sse(error_body(status, str(error)))
        else:
            if self._request.stream_options.include_usage:
                yield _sse(self._encode([], usage=self._usage()))
        yield _sse(b"[DONE]")

    # The format, which chats replace

    def choice(self, chunk: Chunk) -> dict[str, Any]:
        """Return a complete choice."""
        logprobs = None if chunk.logprobs is None else self._logprobs(chunk.logprobs)
        return {"text": chunk.text, "index": chunk.index, "logprobs": logprobs, "finish_reason": chunk.finish_reason}

    def choice_part(self, chunk: Chunk) -> dict[str, Any]:
        """Return a part of a choice, for a stream."""
        return self.choice(chunk)

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        return {
            "tokens": [self.token_text(entry.token_id) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [self._top_logprobs(entry) for entry in entries],
            "text_offset": [entry.offset for entry in entries],
        }

    def _top_logprobs(self, entry: TokenLogprob) -> dict[str, float] | None:
        """Log probabilities by text. The token's own is among them, so there may be one more than requested."""
        if entry.logprob is None:
            return None
        by_text = {self.token_text(entry.token_id): entry.logprob}
        for token_id, logprob in entry.likeliest:
            if token_id != entry.token_id:
                text = self.token_text(token_id)
                by_text[f"token_id:{token_id}" if text in by_text else text] = logprob
        return by_text

    def token_text(self, token_id: int) -> str:
        """Text of a token, or its bytes in OpenAI's notation if they are only a part of a character."""
        if token_id not in self._token_texts:
            self._token_texts[token_id] = _text(self.token_bytes(token_id))
        return self._token_texts[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        if token_id == self._tokenizer.end_of_text:
            return END_OF_TEXT.encode()
        return self._tokenizer.token_bytes(token_id, self._tokenizer.end_of_text)

    # The content

    def _encode(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        """Encode choices; the first encoded part of a response has its notes."""
        fields, self._notes = {**fields, **self._notes}, {}
        return msgspec.json.encode({**self._envelope, "choices": choices, **fields})

    def _usage(self) -> dict[str, int]:
        prompt = sum(len(prompt.ids) for prompt in self._prompts)
        completion = sum(choice.tokens for choice in self._choices)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _chunks(self, event: TokenEvent) -> list[Chunk]:
        """Convert one token event to the chunks that it completes."""
        choice, text = self._choices[event.index], event.token.text
        chunks = list[Chunk]()
        if self._request.echo and not choice.has_begun:
            prompt = choice.prompt.text + self._separator
            choice.sent = choice.generated = len(prompt)
            chunks.append(Chunk(choice.index, prompt, self._prompt_logprobs(choice)))
        has_logprobs = self._request.logprobs is not None
        if self._request.max_tokens == 0:
            return [*chunks, Chunk(choice.index, "", [] if has_logprobs else None, "length", is_first=True)]
        if has_logprobs:
            choice.pending.append(self._logprob(choice, event))
        choice.tokens += event.finish_reason not in _ENDS
        choice.sent += len(text)
        if text or event.finish_reason:
            reason = _FINISH_REASONS[event.finish_reason] if event.finish_reason else None
            logprobs = _take_logprobs(choice, event.finish_reason) if has_logprobs else None
            chunks.append(Chunk(choice.index, text, logprobs, reason, is_first=not choice.has_begun))
        choice.has_begun = choice.has_begun or bool(chunks)
        return chunks

    def _logprob(self, choice: _Choice, event: TokenEvent) -> TokenLogprob:
        token, offset = event.token.chosen, choice.generated
        if token.token_id != self._tokenizer.end_of_text:
            choice.generated += len(choice.detokenizer.add(token.token_id))
        candidates = event.token.candidates[: self._request.logprobs]
        likeliest = [(candidate.token_id, _log(candidate.probability)) for candidate in candidates]
        return TokenLogprob(offset, token.token_id, _log(token.probability), likeliest)

    def _prompt_logprobs(self, choice: _Choice) -> list[TokenLogprob] | None:
        """Log probabilities of the tokens of a prompt, the first of which has none."""
        if self._request.logprobs is None:
            return None
        entries, offset, detokenizer = list[TokenLogprob](), 0, IncrementalDetokenizer(self._tokenizer)
        scores = (None, *self.generation.sequences[choice.index].prompt_scores)
        for token_id, score in zip(choice.prompt.ids, scores, strict=False):  # an empty prompt has no first token
            likeliest = score.likeliest[: self._request.logprobs] if score else ()
            entries.append(TokenLogprob(offset, token_id, score.logprob if score else None, likeliest))
            offset += len(detokenizer.add(token_id))
        return entries


def _take_logprobs(choice: _Choice, finish_reason: str) -> list[TokenLogprob]:
    """Remove and return the log probabilities of the tokens whose text was sent; tokens of a stop text never are."""
    flush = finish_reason in ("length", *_ENDS)
    ready = [entry for entry in choice.pending if flush or entry.offset < choice.sent]
    choice.pending = choice.pending[len(ready) :]
    return ready


def _merge(chunks: Sequence[Chunk]) -> Chunk:
    """Merge the chunks of one choice into one."""
    last, text = chunks[-1], "".join(chunk.text for chunk in chunks)
    logprobs = [entry for chunk in chunks for entry in chunk.logprobs or ()]
    return Chunk(last.index, text, None if last.logprobs is None else logprobs, last.finish_reason)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else LOG_ZERO


def _sse(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
