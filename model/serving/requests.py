"""Completion requests: parse and validate the body, tokenize the prompts, build the sequences to generate.

The fields are those of OpenAI's `POST /v1/completions`; top_k, min_p and repetition_penalty are our own. A field of
OpenAI's that is not supported is an error. An unknown one is ignored, and the response names it in `warnings`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from model.generation.engine import TokenSequence
from model.generation.sampling import SampleOptions
from pipeline.errors import BadData
from pipeline.runtime.terminal import counted
from pipeline.tokenizers import IncrementalDetokenizer, Tokenizer, Unencodable

MAX_TOKENS = 4096
_MAX_PROMPT = 50_000  # characters or ids, far beyond any context window here
_MAX_SEQUENCES = 32  # of one request
_MAX_WARNINGS, _MAX_NAME = 8, 60  # ignored fields in a response, and characters of their names
_MIN_TOP_P = 1e-6  # takes the most likely token
_MAX_MESSAGE = 300  # characters of an error message, which may quote the client's input
_FIELD = re.compile(r"`\$\.(\w+)")
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
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    fields = {"message": message[:_MAX_MESSAGE], "type": kind, "param": param and param[:_MAX_MESSAGE], "code": code}
    return msgspec.json.encode({"error": fields})


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that requests for completions and for chats have in common. A null field counts as absent."""

    model: str = ""
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 16
    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.1, le=10)] = 1.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    n: Annotated[int, Meta(ge=1, le=_MAX_SEQUENCES)] = 1
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=16)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str = ""  # accepted, has no effect
    logit_bias: dict[str, float] = {}  # not supported: only {} is accepted

    def check(self) -> None:
        """Raise APIError for a value that the types allow and the server does not support."""
        self.refuse("logit_bias")

    def refuse(self, *names: str) -> None:
        """Raise APIError if one of the fields is not empty."""
        for name in names:
            if getattr(self, name):
                raise APIError(400, f"{name} is not supported", name)


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of a completion request. Of `best_of` and `suffix` only values that change nothing are supported."""

    prompt: str | list[str | int | list[int]] = ""
    logprobs: Annotated[int, Meta(ge=0, le=10)] | None = None
    echo: bool = False
    best_of: int = 0
    suffix: str = ""

    def check(self) -> None:
        self.refuse("suffix", "logit_bias")
        if self.best_of not in (0, self.n):
            raise APIError(400, f"best_of must equal n ({self.n}), got {self.best_of}", "best_of")

    def scores_prompt(self) -> bool:
        return self.echo and self.logprobs is not None


_Request = TypeVar("_Request", bound=SamplingFields)


def parse(body: bytes, kind: type[_Request]) -> tuple[_Request, list[str]]:
    """Parse and validate a request body. Return it and a warning for each field that is ignored. Raises APIError."""
    try:
        fields = msgspec.json.decode(body)
        if not isinstance(fields, dict):
            raise APIError(400, "the body must be a JSON object")
        present = {name: value for name, value in fields.items() if value is not None}
        request = msgspec.convert(present, kind)
    except RecursionError:
        raise APIError(400, "the JSON is nested too deeply") from None
    except msgspec.ValidationError as error:
        match = _FIELD.search(str(error))
        param = match[1] if match else None
        reason = _PATH.sub("", str(error))
        raise APIError(400, f"{param}: {reason}" if param else reason, param) from None
    except ValueError as error:  # msgspec's DecodeError, and Python's errors for long digits and for UTF-8
        raise APIError(400, f"the body is not JSON: {error}") from None
    request.check()
    return request, _ignored(present, kind)


def _ignored(present: Mapping[str, Any], kind: type[SamplingFields]) -> list[str]:
    """Return a warning for each field that this server does not have, also inside of another field."""
    names = [name for name in present if name not in kind.__struct_fields__]
    names += [f"stream_options.{name}" for name in present.get("stream_options", ()) if name != "include_usage"]
    for message in present.get("messages", ()):
        names += [f"messages.{name}" for name, value in message.items() if value and name not in ("role", "content")]
    unique = list(dict.fromkeys(name[:_MAX_NAME] for name in names))
    omitted = len(unique) - _MAX_WARNINGS
    warnings = [f"{name}: unknown field, ignored" for name in unique[:_MAX_WARNINGS]]
    return warnings + [f"{counted(omitted, 'more unknown fields')}, ignored"] * (omitted > 0)


@dataclass(frozen=True)
class TokenizedPrompt:
    text: str
    ids: list[int]


def tokenize_prompts(
    request: CompletionRequest, tokenizer: Tokenizer, capacity: int, block_size: int
) -> list[TokenizedPrompt]:
    """Tokenize the prompts of a request.

    Raises APIError, also for more sequences than `capacity`, and for a prompt to score that is longer than the block.
    """
    prompts: Any = request.prompt
    types = {type(prompt) for prompt in prompts}
    if isinstance(prompts, str) or types == {int}:
        prompts = [prompts]
    elif len(types) != 1:
        raise APIError(
            400, "prompt must be a text, a list of texts, a list of ids, or a list of lists of ids", "prompt"
        )
    if max(map(len, prompts)) > _MAX_PROMPT:
        raise APIError(400, f"prompt must have at most {_MAX_PROMPT:,} characters or ids", "prompt")
    limit = min(_MAX_SEQUENCES, capacity)
    if len(prompts) * request.n > limit:
        allowed = counted(limit, "sequences")
        message = f"a request may have at most {allowed}, got {counted(len(prompts), 'prompts')} with n = {request.n}"
        raise APIError(400, message, "n" if request.n > 1 else "prompt")
    tokenized = [_tokenize_prompt(prompt, tokenizer) for prompt in prompts]
    longest = max(len(prompt.ids) for prompt in tokenized)
    if request.scores_prompt() and longest > block_size:
        message = f"a prompt with logprobs may have at most {block_size} ids, the block size; got {longest}"
        raise APIError(400, message, "prompt", "context_length_exceeded")
    return tokenized


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
        max_tokens=max(request.max_tokens, 1),  # the response to a request for 0 leaves the token out
        temperature=round(request.temperature, 6),  # a smaller divisor would overflow
        top_k=request.top_k,
        top_p=max(request.top_p, _MIN_TOP_P),
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop),
        candidates=0 if request.logprobs is None else max(request.logprobs, 1),
    )
    seed = secrets.randbelow(2**63) if request.seed is None else request.seed
    repeated = [prompt for prompt in prompts for _ in range(request.n)]
    scores_prompt = request.scores_prompt()
    return [
        TokenSequence(tokenizer, prompt.ids, options, (seed + index) % 2**63, scores_prompt=scores_prompt)
        for index, prompt in enumerate(repeated)
    ]
