"""SentencePiece settings for a cleaned text, and warnings about SentencePiece's defaults.

The defaults are made for English. On Chinese they skip long lines silently, turn ，！？ into ASCII, put ▁ before every
line and make every tenth kind of character unknown (docs/design/cleaning.md 1.3). All of this follows from how often
each character occurs and from the lengths of the lines, so it is known before any training.
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
from pipeline.runtime.terminal import counted

DEFAULT_MAX_LINE_BYTES = 4192  # bytes: SentencePiece's default for max_sentence_length; it skips longer lines silently
DEFAULT_COVERAGE = 0.9995  # SentencePiece's default for character_coverage
COVERAGE = 0.9999  # with byte fallback; a text of fewer than 10,000 characters is covered completely
UNLIMITED_LINE_BYTES = 1 << 20  # bytes: max_sentence_length for text that was not cleaned
BYTE_PIECES, SPECIAL_PIECES = 256, 2  # pieces that byte fallback needs, and those for unknown and end of text
VOCAB_SIZES = (8_000, 16_000, 32_000)  # of vocabularies: for one novel, for poems, for more
SMALL_VOCAB_SIZES = ((100_000, 1_000), (400_000, 2_000), (4_000_000, 4_000))  # for texts of fewer characters
_SPACE, _UNKNOWN = "▁", "▅"  # as the trainer writes them
_MAX_CHARACTER_RATIO = 0.75  # of a vocabulary: single characters may use this much, the remainder is for words
_MAX_INT32 = (1 << 31) - 1  # the type of max_sentence_length
# Characters that the `nmt` rules change in addition to NFKC, and the one character that they protect from it.
_NMT = re.compile("[\x01-\x1f\x7f\x8f\x9f\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029\ufeff\ufffd]")
_NOT_NFKC = "～"
_HAN = re.compile(f"[{HAN}]")


class Flags(msgspec.Struct, frozen=True):
    """Settings of SentencePiece's trainer. The defaults suit any text without statistics.

    `vocab_size` is only a suggestion for the user, 0 for none.
    """

    normalization_rule_name: str = "identity"
    add_dummy_prefix: bool = False
    remove_extra_whitespaces: bool = False
    character_coverage: float = COVERAGE
    byte_fallback: bool = True
    max_sentence_length: int = UNLIMITED_LINE_BYTES
    vocab_size: int = 0

    def as_arguments(self) -> list[str]:
        """Return these settings as flags of `spm_train`."""
        settings = {**self.settings(), **({"vocab_size": self.vocab_size} if self.vocab_size else {})}
        values = {name: str(value).lower() if isinstance(value, bool) else value for name, value in settings.items()}
        return [f"--{name}={value}" for name, value in values.items()]

    def settings(self) -> dict[str, Any]:
        """Return all settings except the size, as keyword arguments of the trainer."""
        return {name: value for name, value in msgspec.structs.asdict(self).items() if name != "vocab_size"}


@dataclass(frozen=True)
class LineStats:
    """Statistics of the lines that a tokenizer will be trained on.

    `characters` maps each character to its frequency. `count` is the number of lines, `longest_bytes` the size of the
    longest, and `over_default` the number of lines longer than DEFAULT_MAX_LINE_BYTES.
    """

    characters: Mapping[str, int]
    count: int
    longest_bytes: int
    over_default: int

    def trainer_frequencies(self) -> dict[str, int]:
        """Return the character frequencies as counted by the trainer: without line ends, and with spaces as ▁."""
        frequencies = {
            character: count for character, count in self.characters.items() if character not in "\n\0" and count
        }
        if spaces := frequencies.pop(" ", 0):
            frequencies[_SPACE] = frequencies.get(_SPACE, 0) + spaces
        return frequencies


def flags(lines: LineStats) -> Flags:
    """Return the settings for these lines: no character rewritten, no prefix added, no line skipped, no text lost.

    If many characters occur once, the rarest are left to byte fallback. Otherwise no line contains byte pieces, and a
    model that never saw them has a high loss on each new character (benchmarks/NOTES.md).
    """
    max_length = min(max(lines.longest_bytes, DEFAULT_MAX_LINE_BYTES), _MAX_INT32)
    frequencies = lines.trainer_frequencies()
    total = sum(frequencies.values())
    sizes = (*(size for limit, size in SMALL_VOCAB_SIZES if total < limit), *VOCAB_SIZES)
    singletons = sum(count == 1 for count in frequencies.values())
    coverages = (*((COVERAGE,) if singletons <= (1 - COVERAGE) * total else ()), DEFAULT_COVERAGE)
    for coverage in coverages:
        for size in sizes:
            if alphabet_size(frequencies, coverage) + BYTE_PIECES + SPECIAL_PIECES <= _MAX_CHARACTER_RATIO * size:
                return Flags(character_coverage=coverage, max_sentence_length=max_length, vocab_size=size)
    return Flags(character_coverage=DEFAULT_COVERAGE, max_sentence_length=max_length, vocab_size=VOCAB_SIZES[-1])


def alphabet_size(frequencies: Mapping[str, int], coverage: float) -> int:
    """Return the number of characters that the trainer includes at `coverage`; the others become unknown.

    As in SentencePiece's trainer_interface.cc: the most frequent ones until they cover that fraction of the text, in
    32-bit floats.
    """
    if not frequencies:
        return 0
    counts = np.array(sorted(frequencies.values(), reverse=True), np.int64)
    covered_before = ((np.cumsum(counts) - counts) / counts.sum()).astype(np.float32)
    return int(np.count_nonzero(covered_before < np.float32(coverage)))


def min_vocab_size(frequencies: Mapping[str, int], settings: Flags) -> int:
    """Return the size of the smallest trainable vocabulary: the characters, the bytes and two special pieces."""
    space = int(_SPACE not in frequencies)  # which is always a piece
    return (
        alphabet_size(frequencies, settings.character_coverage)
        + space
        + BYTE_PIECES * settings.byte_fallback
        + SPECIAL_PIECES
    )


def rewritten_characters(frequencies: Mapping[str, int]) -> dict[str, int]:
    """Return the characters that SentencePiece's default normaliser `nmt_nfkc` changes, with their frequencies."""
    return {character: count for character, count in frequencies.items() if _is_rewritten(character)}


def _is_rewritten(character: str) -> bool:
    changes_in_nfkc = unicodedata.normalize("NFKC", character) != character
    return (changes_in_nfkc and character != _NOT_NFKC) or bool(_NMT.match(character))


def warnings(lines: LineStats) -> list[str]:
    """Return the effects of SentencePiece's defaults on these lines, and the minimum vocabulary size.

    They are part of report.json, so a change of their wording changes its bytes.
    """
    frequencies, settings = lines.trainer_frequencies(), flags(lines)
    if not frequencies:
        return []
    texts = []
    if lines.over_default:
        texts.append(
            f"max_sentence_length={DEFAULT_MAX_LINE_BYTES} would skip "
            f"{lines.over_default:,} of {lines.count:,} lines in silence"
        )
    if reserved := frequencies.get(_UNKNOWN, 0):
        texts.append(
            f"lines with {_UNKNOWN} are skipped in silence, whatever the settings: it occurs {reserved:,} times"
        )
    if changed := rewritten_characters(frequencies):
        most_frequent = sorted(changed, key=lambda character: (-changed[character], character))[:8]
        printable = " ".join(c if c.isprintable() else ascii(c)[1:-1] for c in most_frequent)
        texts.append(
            f"normalization_rule_name=nmt_nfkc would rewrite {sum(changed.values()):,} characters: {printable}"
        )
    han_count = sum(count for character, count in frequencies.items() if _HAN.match(character))
    if lines.count and han_count * 2 > sum(frequencies.values()):
        texts.append(f"add_dummy_prefix=true would put {_SPACE} before each of {lines.count:,} lines")
    if lost := len(frequencies) - alphabet_size(frequencies, DEFAULT_COVERAGE):
        texts.append(f"character_coverage={DEFAULT_COVERAGE} would make {lost:,} of {len(frequencies):,} kinds unknown")
    needs = f"a vocabulary needs {min_vocab_size(frequencies, settings):,} pieces for characters and bytes"
    rare = len(frequencies) - alphabet_size(frequencies, settings.character_coverage)
    note = f"{counted(rare, 'rare kinds')} {'is' if rare == 1 else 'are'} spelled as bytes"
    texts.append(f"{needs}; {note}" if rare else needs)
    return texts
