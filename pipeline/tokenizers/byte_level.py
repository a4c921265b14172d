"""Train byte-level BPE in the form of GPT-2 and Qwen, with the library `tokenizers`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from pipeline.errors import BadData
from pipeline.runtime.workers import run_isolated
from pipeline.tokenizers.fast_tokenizer import FastTokenizer
from pipeline.tokenizers.tokenizer import END_OF_TEXT
from pipeline.tokenizers.training_text import Sentences, paragraphs_of

PARAGRAPH_BYTES = 16 << 20  # of text at most; 16 MB of Chinese take a minute and 1.5 GB, of English 10 s and 0.2 GB
_SMALLEST = 256 + 1  # a piece for each byte, and end of text
_MIN_FREQUENCY = 2  # of a pair that becomes a piece

# Qwen2's pattern (transformers, tokenization_qwen2.py): runs of letters of any script with one character before them,
# single digits, punctuation with line ends, and spaces. Chinese is split at its punctuation.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_byte_level(
    texts: Sequence[Sentences], vocab_size: int, name: str, *, adapt: bool, stop: threading.Event | None = None
) -> FastTokenizer:
    """Train a tokenizer with exactly `vocab_size` ids, or with `adapt` as near as possible; end-of-text is id 0.

    The same text gives the same bytes with any number of threads. The library ignores signals, so it runs in a separate
    process, which `stop` kills. Raises BadData if the text does not allow the size, TryAgain after a stop.
    """
    if vocab_size < _SMALLEST and not adapt:
        raise _impossible(vocab_size, f"its bytes alone need {_SMALLEST}", _SMALLEST)
    data, size = run_isolated(_train, texts, max(vocab_size, _SMALLEST), stop=stop)
    if size < vocab_size and not adapt:
        raise _impossible(vocab_size, f"it has text for {size:,} at most", size)
    return FastTokenizer(data, name, 0)


def _train(texts: Sequence[Sentences], vocab_size: int) -> tuple[bytes, int]:
    """Return the bytes of a tokenizer.json with at most `vocab_size` ids, and its number of ids."""
    tokenizer = _untrained()
    tokenizer.train_from_iterator(paragraphs_of(texts, PARAGRAPH_BYTES), _trainer(vocab_size))
    return tokenizer.to_str(pretty=True).encode(), tokenizer.get_vocab_size()


def _untrained() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _trainer(vocab_size: int) -> Any:
    from tokenizers import pre_tokenizers, trainers

    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )


def _impossible(vocab_size: int, reason: str, possible: int) -> BadData:
    return BadData(
        f"cannot train a bbpe vocabulary of {vocab_size:,} on this corpus: {reason}",
        hint=f"choose --vocab-size {possible}, or --vocab-size auto",
    )
