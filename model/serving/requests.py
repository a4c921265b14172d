"""Completion requests: parse and validate the body, tokenize the prompts, build the sequences to generate.

The fields are those of OpenAI's `POST /v1/completions`; top_k, min_p and repetition_penalty are our own. An unsupported
field is an error, never ignored.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from model.generation.engine import TokenSequence
from model.generation.sampling import SampleOptions
from pipeline.errors import BadData
from pipeline.tokenizers import IncrementalDetokenizer, Tokenizer, Unencodable

MAX_TOKENS = 4096
_MAX_PROMPT = 50_000  # characters or ids of all prompts together, far beyond any context window here
_MAX_SEQUENCES = 16  # of one request
_MAX_MESSAGE = 300  # characters of an error message, which may quote the client's input
_FIELD = re.compile(r"(?:`\$\.|unknown field `)(\w+)")
_PATH = re.compile(r" - at `[^`]*`$")
_Stop = Annotated[str, Meta(min_length=1, max_length=100)]


class APIError(Exception):
    """An error response with its HTTP status. `param` names the request field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, param, code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """Encode an error in OpenAI's format."""
    kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
    fields = {"message": message[:_MAX_MESSAGE], "type": kind, "param": param and param[:_MAX_MESSAGE], "code": code}
    return msgspec.json.encode({"error": fields})


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class CompletionRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a completion request. A null field counts as absent."""

    model: str = ""
    prompt: str | list[str | int | list[int]] = ""
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 16
    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Meta(ge=1e-6, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.1, le=10)] = 1.0
    n: Annotated[int, Meta(ge=1, le=_MAX_SEQUENCES)] = 1
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=4)] = []
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str = ""  # accepted, has no effect
    # Unsupported fields of OpenAI's API: only values that change nothing are accepted.
    best_of: int = 0
    suffix: str = ""
    logit_bias: dict[str, float] = {}
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


def parse(body: bytes) -> CompletionRequest:
    """Parse and validate a request body. Raises APIError."""
    try:
        fields = msgspec.json.decode(body)
        if not isinstance(fields, dict):
            raise APIError(400, "the body must be a JSON object")
        present = {name: value for name, value in fields.items() if value is not None}
        request = msgspec.convert(present, CompletionRequest)
    except RecursionError:
        raise APIError(400, "the JSON is nested too deeply") from None
    except msgspec.ValidationError as error:
        match = _FIELD.search(str(error))
        param = match[1] if match else None
        reason = _PATH.sub("", str(error))
        raise APIError(400, f"{param}: {reason}" if param else reason, param) from None
    except ValueError as error:  # msgspec's DecodeError, and Python's errors for long digits and for UTF-8
        raise APIError(400, f"the body is not JSON: {error}") from None
    if request.best_of not in (0, request.n):
        raise APIError(400, f"best_of must equal n ({request.n}), got {request.best_of}", "best_of")
    for name in ("suffix", "logit_bias", "presence_penalty", "frequency_penalty"):
        if getattr(request, name):
            raise APIError(400, f"{name} is not supported", name)
    if request.echo and request.logprobs is not None:
        raise APIError(400, "logprobs cannot be combined with echo", "logprobs")
    return request


@dataclass(frozen=True)
class TokenizedPrompt:
    text: str
    ids: list[int]


def tokenize_prompts(request: CompletionRequest, tokenizer: Tokenizer, capacity: int) -> list[TokenizedPrompt]:
    """Tokenize the prompts of a request. Raises APIError, also for more sequences than `capacity`."""
    prompts: Any = request.prompt
    types = {type(prompt) for prompt in prompts}
    if isinstance(prompts, str) or types == {int}:
        prompts = [prompts]
    elif len(types) != 1:
        raise APIError(
            400, "prompt must be a text, a list of texts, a list of ids, or a list of lists of ids", "prompt"
        )
    if sum(map(len, prompts)) > _MAX_PROMPT:
        raise APIError(400, f"prompt must have at most {_MAX_PROMPT:,} characters or ids", "prompt")
    limit = min(_MAX_SEQUENCES, capacity)
    if len(prompts) * request.n > limit:
        message = f"a request may have at most {limit} sequences, got {len(prompts)} prompts with n = {request.n}"
        raise APIError(400, message, "n" if request.n > 1 else "prompt")
    return [_tokenize_prompt(prompt, tokenizer) for prompt in prompts]


def _tokenize_prompt(prompt: str | list[int], tokenizer: Tokenizer) -> TokenizedPrompt:
    if not isinstance(prompt, str):
        if not all(0 <= token < tokenizer.vocab_size for token in prompt):
            raise APIError(400, f"prompt ids must be from 0 to {tokenizer.vocab_size - 1}", "prompt")
        detokenizer = IncrementalDetokenizer(tokenizer)
        return TokenizedPrompt("".join(map(detokenizer.add, prompt)), prompt)
    try:
        return TokenizedPrompt(prompt, tokenizer.encode(prompt))
    except (BadData, Unencodable) as error:
        raise APIError(400, f"prompt: {error}", "prompt") from None


def make_sequences(
    request: CompletionRequest, prompts: Sequence[TokenizedPrompt], tokenizer: Tokenizer
) -> list[TokenSequence]:
    """Build the sequences to generate, `n` for each prompt. Sequence i uses `seed` + i, as the sample command does."""
    options = SampleOptions(
        max_tokens=request.max_tokens,
        temperature=round(request.temperature, 6),  # a smaller divisor would overflow
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop),
        candidates=0 if request.logprobs is None else max(request.logprobs, 1),
    )
    seed = secrets.randbelow(2**63) if request.seed is None else request.seed
    repeated = [prompt for prompt in prompts for _ in range(request.n)]
    return [
        TokenSequence(tokenizer, prompt.ids, options, (seed + index) % 2**63) for index, prompt in enumerate(repeated)
    ]
