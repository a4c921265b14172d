"""OpenAI's completions: what a client may ask (what it is told is in answers.py).

The fields are those of OpenAI's `POST /v1/completions`; top_k, min_p and repetition_penalty are this project's own. A
field that cannot be followed is refused, never passed over in silence.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from model.generation.engine import Continuation
from model.generation.sampling import SampleOptions
from pipeline.errors import BadData
from pipeline.tokenizers import Tokenizer, Unencodable, Unfolding

MAX_TOKENS = 4096
_PROMPT = 50_000  # characters or ids of all prompts together: many times what any network here sees
_TEXTS = 16  # of one request
_MESSAGE = 300  # characters: what a client sent may be a part of it
_FIELD = re.compile(r"(?:`\$\.|unknown field `)(\w+)")
_WHERE = re.compile(r" - at `[^`]*`$")
_Stop = Annotated[str, Meta(min_length=1, max_length=100)]


class Refused(Exception):
    """A request that is not answered, with its HTTP status; `param` is the field that is to blame."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, param, code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """An error in OpenAI's shape."""
    kind = {429: "rate_limit_error"}.get(status, "server_error" if status >= 500 else "invalid_request_error")
    told = {"message": message[:_MESSAGE], "type": kind, "param": param and param[:_MESSAGE], "code": code}
    return msgspec.json.encode({"error": told})


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request. A field that is null is as one that is not there."""

    model: str = ""
    prompt: str | list[str | int | list[int]] = ""
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 16
    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Meta(ge=1e-6, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0.1, le=10)] = 1.0
    n: Annotated[int, Meta(ge=1, le=_TEXTS)] = 1
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=4)] = []
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str = ""  # which changes nothing
    # What others offer; here only the values that change nothing are taken.
    best_of: int = 0
    suffix: str = ""
    logit_bias: dict[str, float] = {}
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


def parse(body: bytes) -> Asked:
    """What a body asks for. Raises Refused."""
    try:
        fields = msgspec.json.decode(body)
        if not isinstance(fields, dict):
            raise Refused(400, "the body must be a JSON object")
        asked = msgspec.convert({name: value for name, value in fields.items() if value is not None}, Asked)
    except RecursionError:
        raise Refused(400, "the JSON is nested too deeply") from None
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        param = found[1] if found else None
        what = _WHERE.sub("", str(error))
        raise Refused(400, f"{param}: {what}" if param else what, param) from None
    except ValueError as error:  # msgspec's DecodeError, and what Python says of digits and of UTF-8
        raise Refused(400, f"the body is not JSON: {error}") from None
    if asked.best_of not in (0, asked.n):
        raise Refused(400, "best_of: only as many as n are made", "best_of")
    for name in ("suffix", "logit_bias", "presence_penalty", "frequency_penalty"):
        if getattr(asked, name):
            raise Refused(400, f"{name} is not supported", name)
    if asked.echo and asked.logprobs is not None:
        raise Refused(400, "logprobs: those of an echoed prompt are not known, ask for one of the two", "logprobs")
    return asked


@dataclass(frozen=True)
class Prompt:
    text: str
    ids: list[int]


def read_prompts(asked: Asked, tokenizer: Tokenizer, places: int) -> list[Prompt]:
    """The prompts, tokenized. Raises Refused, also where so many texts could never have a place."""
    given: Any = asked.prompt
    kinds = {type(each) for each in given}
    if isinstance(given, str) or kinds == {int}:
        given = [given]
    elif len(kinds) != 1:
        raise Refused(400, "prompt: a text, a list of texts, a list of ids, or a list of lists of ids", "prompt")
    if sum(map(len, given)) > _PROMPT:
        raise Refused(400, f"prompt: longer than {_PROMPT:,} characters or ids", "prompt")
    if len(given) * asked.n > min(_TEXTS, places):
        what = f"{len(given)} prompts and n = {asked.n} are more than {min(_TEXTS, places)} texts"
        raise Refused(400, what, "n" if asked.n > 1 else "prompt")
    return [_read_prompt(each, tokenizer) for each in given]


def _read_prompt(given: str | list[int], tokenizer: Tokenizer) -> Prompt:
    if not isinstance(given, str):
        if not all(0 <= token < tokenizer.vocab_size for token in given):
            raise Refused(400, f"prompt: ids are from 0 to {tokenizer.vocab_size - 1}", "prompt")
        unfolding = Unfolding(tokenizer)
        return Prompt("".join(map(unfolding.add, given)), given)
    try:
        return Prompt(given, tokenizer.encode(given))
    except (BadData, Unencodable) as error:
        raise Refused(400, f"prompt: {error}", "prompt") from None


def continuations(asked: Asked, prompts: Sequence[Prompt], tokenizer: Tokenizer) -> list[Continuation]:
    """The texts to go on with, `n` of each prompt; the i-th draws by `seed` + i, as `sample` does."""
    options = SampleOptions(
        max_tokens=asked.max_tokens,
        temperature=round(asked.temperature, 6),  # what divides by less is no number any more
        top_k=asked.top_k,
        top_p=asked.top_p,
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty,
        stop=(asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop),
        candidates=0 if asked.logprobs is None else max(asked.logprobs, 1),
    )
    seed = secrets.randbelow(2**63) if asked.seed is None else asked.seed
    repeated = [prompt for prompt in prompts for _ in range(asked.n)]
    return [
        Continuation(tokenizer, prompt.ids, options, (seed + number) % 2**63) for number, prompt in enumerate(repeated)
    ]
