"""gigatoken: a fast encoder of tiktoken's encodings, where it is installed and knows the encoding."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence

import numpy as np

from pipeline.errors import BadConfig
from pipeline.tokenizers.interface import FlatIds, flat_ids

ENCODERS = ("auto", "gigatoken", "tiktoken")

# tiktoken's name of an encoding → gigatoken's name of its split pattern. It does not take p50k_base, whose ranks have
# a gap.
_PATTERNS = {"gpt2": "gpt2", "r50k_base": "gpt2", "cl100k_base": "gpt4", "o200k_base": "o200k"}

# Characters of a text, on average, from which gigatoken encodes texts as fast one by one as in a batch. What it gives
# for a batch is made by a library that takes 0.25 s to load, half of what a worker needs to start.
_LONG = 500


def choose_encoder(encoding: str, asked: str) -> str:
    """The library that encodes `encoding`, "gigatoken" or "tiktoken", for one of ENCODERS. Raises BadConfig."""
    if asked not in ENCODERS:
        raise BadConfig(f"no encoder {asked!r}", hint=f"encoders: {', '.join(ENCODERS)}")
    why_not = why_not_fast(encoding)
    if asked == "tiktoken" or (asked == "auto" and why_not):
        return "tiktoken"
    if why_not:
        raise BadConfig(f"--encoder gigatoken: it {why_not}", hint="pip install gigatoken, or use --encoder tiktoken")
    return "gigatoken"


def why_not_fast(encoding: str) -> str:
    """Why gigatoken cannot encode `encoding`, "" where it can."""
    if not has_gigatoken():
        return "is not installed"
    return "" if encoding in _PATTERNS else "does not know this encoding"


@functools.cache
def has_gigatoken() -> bool:
    """Whether the fast encoder is installed: there are machines that it is not built for."""
    try:
        import gigatoken  # noqa: F401
    except ImportError:
        return False
    return True


class FastEncoder:
    """gigatoken's encoder of an encoding that it knows, from its ranks in tiktoken's format.

    Takes 0.1 to 0.5 s and about 30 MB. Text never becomes a special token.
    """

    def __init__(self, encoding: str, ranks: bytes) -> None:
        import gigatoken

        with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
            file.write(ranks)
            file.flush()
            self._tokenizer = gigatoken.Tokenizer.from_tiktoken(
                file.name, pretokenizer=_PATTERNS[encoding], special_tokens={}
            )

    def encode(self, texts: Sequence[str]) -> FlatIds:
        """(flat uint32 ids of all texts in order, int64 number of ids of each text)."""
        if sum(map(len, texts)) >= _LONG * len(texts):
            return flat_ids([self._tokenizer.encode(text) for text in texts])
        rows = self._tokenizer.encode_batch(list(texts), parallel=False).layout
        return np.asarray(rows.content.data), np.diff(np.asarray(rows.offsets.data))
