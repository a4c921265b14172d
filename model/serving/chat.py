"""Chat requests: OpenAI's `POST /v1/chat/completions`.

With a chat template in the tokenizer of the run, the messages become the turns of the template. The oldest ones are
left out if they do not fit, with a warning in the response. A base model has no template: the contents of the messages
are joined, the model continues the last one, and every response has a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from model.generation.chat import TooLong, encode_chat
from model.serving.requests import MAX_TOKENS, APIError, CompletionRequest, SamplingFields
from pipeline.errors import BadData
from pipeline.runtime.terminal import counted
from pipeline.tokenizers import ChatTokenizer, Tokenizer

BASE_MODEL = "this is a base model without a chat template: it continues the messages, joined by line ends, as one text"
_DROPPED = "left out {} from the beginning: the model reads {} tokens at a time"
_ROLES = {"developer": "system"}  # OpenAI's newer name


class _TextPart(msgspec.Struct, frozen=True):
    text: str
    type: Literal["text"] = "text"


class Message(msgspec.Struct, frozen=True):
    """One message of a chat. The role has no effect on a base model."""

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

    def completion(self, tokenizer: Tokenizer, block_size: int) -> tuple[CompletionRequest, dict[str, Any]]:
        """Return the completion request for this chat, and notes for its response. Raises APIError."""
        fields = {name: getattr(self, name) for name in SamplingFields.__struct_fields__}
        if self.max_completion_tokens is not None:
            fields["max_tokens"] = self.max_completion_tokens
        logprobs = self.top_logprobs if self.logprobs else None
        prompt: Any
        if isinstance(tokenizer, ChatTokenizer):
            prompt, dropped = template_prompt(self.messages, tokenizer, block_size, fields["max_tokens"])
            notes = {
                "dropped_messages": dropped,
                "warnings": [_DROPPED.format(counted(dropped, "messages"), block_size)] * bool(dropped),
            }
        else:
            prompt, notes = plain_prompt(self.messages, tokenizer), {"warnings": [BASE_MODEL]}
        return CompletionRequest(**fields, prompt=prompt, logprobs=logprobs), notes


def template_prompt(
    messages: Sequence[Message], tokenizer: ChatTokenizer, block_size: int, max_tokens: int
) -> tuple[list[int], int]:
    """Return the ids of a chat up to the beginning of the answer, and the number of messages that were left out.

    Raises APIError if the last turn does not fit, or if the messages cannot be encoded.
    """
    turns = [{"role": _ROLES.get(message.role, message.role), "content": message.text} for message in messages]
    try:
        return encode_chat(turns, tokenizer, block_size, max_tokens)
    except (TooLong, BadData) as error:
        code = "context_length_exceeded" if isinstance(error, TooLong) else None
        raise APIError(400, f"messages: {error.message}", "messages", code) from None


def plain_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> str:
    """Join the texts of messages by line ends, or by nothing if the tokenizer has no token for a line end."""
    separator = "" if tokenizer.count_unknown("\n") else "\n"
    return separator.join(message.text for message in messages)
