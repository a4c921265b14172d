"""Incremental detokenizer: decode ids one at a time without ever emitting part of a character."""

from __future__ import annotations

import codecs

from pipeline.tokenizers.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Decode ids one at a time. Bytes that begin a character are kept until its last byte is added.

    Invalid UTF-8 is dropped, so U+FFFD never appears. `after` is the id before the first one, None if there is none.
    """

    def __init__(self, tokenizer: Tokenizer, after: int | None = None) -> None:
        self._tokenizer, self._previous = tokenizer, after
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def add(self, token: int) -> str:
        """Return the text that this id completes, "" if it only begins a character."""
        data = self._tokenizer.token_bytes(token, self._previous)
        self._previous = token
        return self._decoder.decode(data)
