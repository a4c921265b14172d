"""Positions where a text can be cut so that its parts have the ids of the whole, found by trying them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from pipeline.tokenizers.tokenizer import Unencodable

# Between Latin words, lines and Chinese phrases: there, the split patterns of GPT-2, GPT-4, Qwen, Llama 3 and DeepSeek
# end a piece, whatever the surrounding text.
WORD = "(?<=[a-z])(?= [a-z])"
LINE = "(?<=[^\\s]\n)(?=[a-z\u5000-\u9fa5])"
PHRASE = "(?<=[\u5000-\u9fa5])(?=[。，！？；：、])"
WORD_OR_LINE = re.compile(f"{WORD}|{LINE}|{PHRASE}")

_TEXTS, _PARTS = 200, 60
_FRAGMENTS = (
    *("the", " and", " of", " a", " don't", "'ll", " I", " Once", "ing", "x", " zebra", " internationalisation"),
    *(" ", "  ", "   ", "\t", "\n", "\n\n", ".\n", "!\n", "a\n", "山\n", "，\n", "\r\n", " \n", "1\n"),
    *("7", "12345", " 3.14", "2026", ".", ", ", "!?", " -", "--", '"', " (", ")", "<", "/s>", "_", "#", "▁", "=="),
    *("话说", "天下大势", "分久必合", "道", "。", "，", "！", "？", "；", "：", "、", "“", "”", "\u3000", "朕", "龙"),
    *("é", "e\u0301", "Ω", "한국어", "नमस्ते", "🙂", "𠮷", "ﬁ", "Ａ"),
)


def safe_boundary(encode: Callable[[str], list[int]]) -> re.Pattern[str] | None:
    """Return the pattern of the positions at which `encode` can be applied to the parts, None if none is safe.

    A kind of position is safe if cutting at all of them changes no id of any of 200 random texts.
    """
    dice = random.Random(1)
    texts = ["".join(dice.choices(_FRAGMENTS, k=_PARTS)) for _ in range(_TEXTS)]
    patterns = [pattern for pattern in (WORD, LINE, PHRASE) if _is_safe(re.compile(pattern), texts, encode)]
    return re.compile("|".join(patterns)) if patterns else None


def _is_safe(pattern: re.Pattern[str], texts: list[str], encode: Callable[[str], list[int]]) -> bool:
    try:
        return all(
            [token for part in pattern.split(text) if part for token in encode(part)] == encode(text) for text in texts
        )
    except Unencodable:
        return False
