"""What the next stage should know of a cleaned text: what SentencePiece would do to it, and the flags that suit it.

SentencePiece's defaults are made for English. On Chinese they skip long lines in silence, turn ，！？ into ASCII, put ▁
before every line and make every tenth kind of character unknown (reference/cleaning.md 1.3). All of this follows from
how often each character occurs and from the lengths of the lines, so it can be told before any training.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pipeline.clean.utf16 import HAN

DEFAULT_LINE = 4192  # bytes: SentencePiece skips longer lines unless told otherwise
DEFAULT_COVERAGE = 0.9995
COVERAGE = 0.9999  # with byte fallback; a text of fewer than 10,000 characters is covered whole
NEVER_SKIPPED = 1 << 20  # bytes: a line of any text that was not cleaned
BYTES, SPECIAL = 256, 2  # pieces that byte fallback needs, and those for the unknown and for the end of text
SIZES = (8_000, 16_000, 32_000)  # one novel, poems, and beyond
SIZE_OF_LITTLE, LITTLE = 4_000, 200_000  # the size that suits a text of fewer than so many characters
_SPACE, _UNKNOWN = "▁", "▅"  # as the trainer writes them
_FULL = 0.75  # of a vocabulary: the share that single characters may take, so that the rest is for words
_MOST_BYTES = (1 << 31) - 1  # that the flag can say
# What the rules called nmt change besides NFKC, and the one character that they keep from it.
_NMT = re.compile("[\x01-\x1f\x7f\x8f\x9f\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029\ufeff\ufffd]")
_NOT_NFKC = "～"
_HAN = re.compile(f"[{HAN}]")


class Flags(msgspec.Struct, frozen=True):
    """Settings of SentencePiece's trainer. Those that stand here suit any text that nothing is known of.

    `vocab_size` is only a suggestion, 0 where there is none: how large a vocabulary is, a person decides.
    """

    normalization_rule_name: str = "identity"
    add_dummy_prefix: bool = False
    remove_extra_whitespaces: bool = False
    character_coverage: float = COVERAGE
    byte_fallback: bool = True
    max_sentence_length: int = NEVER_SKIPPED
    vocab_size: int = 0

    def as_arguments(self) -> list[str]:
        """The flags of `spm_train` for these settings."""
        chosen = {**self.settings(), **({"vocab_size": self.vocab_size} if self.vocab_size else {})}
        spelled = {name: str(value).lower() if isinstance(value, bool) else value for name, value in chosen.items()}
        return [f"--{name}={value}" for name, value in spelled.items()]

    def settings(self) -> dict[str, Any]:
        """All but the size, as the trainer takes them by keyword."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if name != "vocab_size"}


@dataclass(frozen=True)
class Lines:
    """The lines that a tokenizer will be trained on: how often each character occurs, how many lines there are, the
    longest in bytes, and how many are longer than `DEFAULT_LINE`."""

    characters: Mapping[str, int]
    count: int
    longest: int
    over: int

    def trained(self) -> dict[str, int]:
        """How often each character occurs as the trainer sees it: no line ends, and spaces shown as ▁."""
        seen = {each: count for each, count in self.characters.items() if each not in "\n\0" and count}
        if spaces := seen.pop(" ", 0):
            seen[_SPACE] = seen.get(_SPACE, 0) + spaces
        return seen


def flags(lines: Lines) -> Flags:
    """The settings for these lines: nothing rewritten, nothing put before a line, no line skipped, no text lost.

    Where many characters came once, the rarest are left to byte fallback: else bytes are in no line, and a model that
    never saw them pays dearly for each new character (benchmarks/NOTES.md).
    """
    longest = min(max(lines.longest, DEFAULT_LINE), _MOST_BYTES)
    seen = lines.trained()
    little = (SIZE_OF_LITTLE,) if sum(seen.values()) < LITTLE else ()
    once = sum(count == 1 for count in seen.values())
    wide = (COVERAGE,) if once <= (1 - COVERAGE) * sum(seen.values()) else ()
    for coverage in (*wide, DEFAULT_COVERAGE):
        for size in (*little, *SIZES):
            if alphabet(seen, coverage) + BYTES + SPECIAL <= _FULL * size:
                return Flags(character_coverage=coverage, max_sentence_length=longest, vocab_size=size)
    return Flags(character_coverage=DEFAULT_COVERAGE, max_sentence_length=longest, vocab_size=SIZES[-1])


def alphabet(seen: Mapping[str, int], coverage: float) -> int:
    """How many characters the trainer takes into the vocabulary at `coverage`; the other kinds become unknown.

    As its trainer_interface.cc does it: the most frequent ones, until they are that share of the text in 32 bits.
    """
    if not seen:
        return 0
    counts = np.array(sorted(seen.values(), reverse=True), np.int64)
    before = ((np.cumsum(counts) - counts) / counts.sum()).astype(np.float32)
    return int(np.count_nonzero(before < np.float32(coverage)))


def least_size(seen: Mapping[str, int], chosen: Flags) -> int:
    """The smallest vocabulary that can be trained: the characters, the bytes, and two pieces of no text."""
    space = int(_SPACE not in seen)  # which is always a piece
    return alphabet(seen, chosen.character_coverage) + space + BYTES * chosen.byte_fallback + SPECIAL


def rewritten(seen: Mapping[str, int]) -> dict[str, int]:
    """The characters that `nmt_nfkc`, SentencePiece's default normaliser, would change, and how often they occur."""
    return {each: count for each, count in seen.items() if _rewrites(each)}


def _rewrites(character: str) -> bool:
    changes = unicodedata.normalize("NFKC", character) != character
    return (changes and character != _NOT_NFKC) or bool(_NMT.match(character))


def warnings(lines: Lines) -> list[str]:
    """What SentencePiece's defaults, by their names, would do to these lines, and what a vocabulary must hold."""
    seen, chosen = lines.trained(), flags(lines)
    if not seen:
        return []
    found = []
    if lines.over:
        found.append(
            f"max_sentence_length={DEFAULT_LINE} would skip {lines.over:,} of {lines.count:,} lines in silence"
        )
    if reserved := seen.get(_UNKNOWN, 0):
        found.append(
            f"lines with {_UNKNOWN} are skipped in silence, whatever the settings: it occurs {reserved:,} times"
        )
    if changed := rewritten(seen):
        most = sorted(changed, key=lambda character: (-changed[character], character))[:8]
        shown = " ".join(character if character.isprintable() else ascii(character)[1:-1] for character in most)
        found.append(f"normalization_rule_name=nmt_nfkc would rewrite {sum(changed.values()):,} characters: {shown}")
    if lines.count and sum(count for each, count in seen.items() if _HAN.match(each)) * 2 > sum(seen.values()):
        found.append(f"add_dummy_prefix=true would put {_SPACE} before each of {lines.count:,} lines")
    if lost := len(seen) - alphabet(seen, DEFAULT_COVERAGE):
        found.append(f"character_coverage={DEFAULT_COVERAGE} would make {lost:,} of {len(seen):,} kinds unknown")
    needs = f"a vocabulary needs {least_size(seen, chosen):,} pieces for characters and bytes"
    rare = len(seen) - alphabet(seen, chosen.character_coverage)
    found.append(f"{needs}; {rare:,} rare kinds are spelled as bytes" if rare else needs)
    return found
