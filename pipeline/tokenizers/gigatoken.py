"""gigatoken: a fast encoder of tiktoken's encodings, where it is installed and knows the encoding."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

from pipeline.errors import BadConfig

ENCODERS = ("auto", "gigatoken", "tiktoken")

# tiktoken's name of an encoding → gigatoken's name of its split pattern. It does not take p50k_base, whose ranks have
# a gap.
_PATTERNS = {"gpt2": "gpt2", "r50k_base": "gpt2", "cl100k_base": "gpt4", "o200k_base": "o200k"}


def choose_encoder(encoding: str, asked: str) -> str:
    """The library that encodes `encoding`, "gigatoken" or "tiktoken", for one of ENCODERS. Raises BadConfig."""
    if asked not in ENCODERS:
        raise BadConfig(f"no encoder {asked!r}", hint=f"encoders: {', '.join(ENCODERS)}")
    if asked == "tiktoken" or (asked == "auto" and not (encoding in _PATTERNS and has_gigatoken())):
        return "tiktoken"
    if encoding not in _PATTERNS:
        raise BadConfig(f"gigatoken does not know {encoding}", hint="use --encoder tiktoken")
    if not has_gigatoken():
        raise BadConfig("gigatoken is not installed", hint="pip install gigatoken, or use --encoder tiktoken")
    return "gigatoken"


@functools.cache
def has_gigatoken() -> bool:
    """Whether the fast encoder is installed: there are machines that it is not built for."""
    try:
        import gigatoken  # noqa: F401
    except ImportError:
        return False
    return True


def build_fast(encoding: str, ranks: bytes) -> Any:
    """gigatoken's object for an encoding that it knows, from its ranks in tiktoken's format; text never becomes a
    special token. Takes 0.1 to 0.5 s, in which no other thread gets the interpreter, and about 30 MB."""
    import gigatoken

    with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
        file.write(ranks)
        file.flush()
        return gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer=_PATTERNS[encoding], special_tokens={})
