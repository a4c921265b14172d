"""Text that grows token by token, and never shows half a character."""

from __future__ import annotations

import codecs

from pipeline.tokenizers.tokenizer import Tokenizer


class Unfolding:
    """The text of ids that come one at a time: each gives what it completes, and bytes that begin a character wait for
    the rest of it. Bytes that can be no character are left out, so that no U+FFFD appears.

    `after` is the id before the first one, None where there is none.
    """

    def __init__(self, tokenizer: Tokenizer, after: int | None = None) -> None:
        self._tokenizer, self._last = tokenizer, after
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")

    def add(self, token: int) -> str:
        """The text that this id completes, "" where it only begins a character."""
        spelled = self._tokenizer.spell(token, self._last)
        self._last = token
        return self._decoder.decode(spelled)
