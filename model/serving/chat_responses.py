"""Chat responses in OpenAI's format: a message, or its parts as server-sent events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.serving.responses import Chunk, CompletionResponse, TokenLogprob


class ChatResponse(CompletionResponse):
    """Response to a chat request, whose prompt is the text of its messages."""

    id_prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, chunk: Chunk) -> dict[str, Any]:
        return self._choice(chunk, message={"role": "assistant", "content": chunk.text, "refusal": None})

    def choice_part(self, chunk: Chunk) -> dict[str, Any]:
        role = {"role": "assistant"} if chunk.is_first else {}
        return self._choice(chunk, delta={**role, "content": chunk.text})

    def _choice(self, chunk: Chunk, **content: Any) -> dict[str, Any]:
        logprobs = None if chunk.logprobs is None else {"content": self._contents(chunk.logprobs)}
        return {"index": chunk.index, **content, "logprobs": logprobs, "finish_reason": chunk.finish_reason}

    def _contents(self, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        return [
            {
                **self._token(entry.token_id, entry.logprob),
                "top_logprobs": [self._token(token_id, logprob) for token_id, logprob in entry.likeliest],
            }
            for entry in entries
        ]

    def _token(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self.token_text(token_id), "logprob": logprob, "bytes": list(self.token_bytes(token_id))}
