"""Texts on which tokenizers often differ.

Spaces, line breaks, digits, contractions, special tokens spelled out, and characters of several bytes.
"""

from __future__ import annotations

PROBE_TEXTS = (
    "  double  spaces \n\n\tand a tab\r\n ",
    "It's 12345 o'clock, I'LL say; don’t they've 3,141.59?",
    "<|endoftext|> </s> <unk> <0x0A> ▁",
    "话说天下大势，分久必合。𠮷 é ﬁ 🙂",
)
