"""Chat requests: OpenAI's `POST /v1/chat/completions` for a base model, which knows no turns and no instructions.

The plain template joins the contents of the messages, and the model continues the last one. Every response says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from model.serving.requests import MAX_TOKENS, CompletionRequest, SamplingFields
from pipeline.tokenizers import Tokenizer

BASE_MODEL = "this is a base model without a chat template: it continues the messages, joined by line ends, as one text"


class _TextPart(msgspec.Struct, frozen=True):
    text: str
    type: Literal["text"] = "text"


class Message(msgspec.Struct, frozen=True):
    """One message of a chat. The role is checked, and has no effect."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of a chat request. Tools and formats are not supported, only values that change nothing."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=1000)]
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 256
    max_completion_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] = 0
    tools: tuple[Any, ...] = ()
    functions: tuple[Any, ...] = ()
    response_format: dict[str, Any] | None = None

    def check(self) -> None:
        self.refuse("logit_bias", "tools", "functions")
        if self.response_format not in (None, {"type": "text"}):
            self.refuse("response_format")
        if self.top_logprobs and not self.logprobs:
            self.refuse("top_logprobs")

    def completion(self, tokenizer: Tokenizer) -> CompletionRequest:
        """Return the completion request for the same text."""
        fields = {name: getattr(self, name) for name in SamplingFields.__struct_fields__}
        if self.max_completion_tokens is not None:
            fields["max_tokens"] = self.max_completion_tokens
        logprobs = self.top_logprobs if self.logprobs else None
        return CompletionRequest(**fields, prompt=plain_prompt(self.messages, tokenizer), logprobs=logprobs)


def plain_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    """Join the texts of messages by line ends, or by nothing if the tokenizer does not know the line end."""
    separator = "" if tokenizer.count_unknown("\n") else "\n"
    return separator.join(message.text for message in messages)
