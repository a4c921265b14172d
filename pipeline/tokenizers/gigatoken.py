"""gigatoken: a fast encoder for most of tiktoken's encodings, if it is installed."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.errors import BadConfig
from pipeline.tokenizers.tokenizer import FlatIds

ENCODERS = ("auto", "gigatoken", "tiktoken")

# tiktoken's name of an encoding → gigatoken's name of its split pattern. gigatoken does not support p50k_base, whose
# ranks have a gap.
_PATTERNS = {"gpt2": "gpt2", "r50k_base": "gpt2", "cl100k_base": "gpt4", "o200k_base": "o200k"}


def choose_encoder(encoding: str, encoder: str) -> str:
    """Return "gigatoken" or "tiktoken" for one of ENCODERS. Raises BadConfig if `encoding` cannot be encoded so."""
    if encoder not in ENCODERS:
        raise BadConfig(f"unknown encoder {encoder!r}", hint=f"encoders: {', '.join(ENCODERS)}")
    problem = gigatoken_problem(encoding)
    if encoder == "tiktoken" or (encoder == "auto" and problem):
        return "tiktoken"
    if problem:
        raise BadConfig(f"--encoder gigatoken: it {problem}", hint="pip install gigatoken, or use --encoder tiktoken")
    return "gigatoken"


def gigatoken_problem(encoding: str) -> str:
    """Return the reason why gigatoken cannot encode `encoding`, "" if it can."""
    if not _is_installed():
        return "is not installed"
    return "" if encoding in _PATTERNS else "does not support this encoding"


@functools.cache
def _is_installed() -> bool:
    """Return True if gigatoken is installed; it has no builds for some machines."""
    try:
        import gigatoken  # noqa: F401
    except ImportError:
        return False
    return True


def fast_encoder(encoding: str, ranks: bytes) -> Callable[[Sequence[str]], FlatIds]:
    """Return gigatoken's encoder of a supported encoding, from its ranks in tiktoken's format.

    Loading takes 0.1 to 0.5 s and about 30 MB, the first batch 0.25 s. Text never becomes a special token.
    """
    import gigatoken

    with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
        file.write(ranks)
        file.flush()
        tokenizer = gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer=_PATTERNS[encoding], special_tokens={})

    def encode(texts: Sequence[str]) -> FlatIds:
        rows = tokenizer.encode_batch(list(texts), parallel=False).layout
        return np.asarray(rows.content.data), np.diff(np.asarray(rows.offsets.data))

    return encode
