"""The counts of a cleaning: the effect of each rule, the text that was published, and the faults of the input.

Each worker fills its own `CleaningReport`; the parent adds them up in any order. Characters are code points throughout.
report.json and the table for the user follow from these counts alone (render.py). `check_balance` proves that every
character is accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np

from pipeline.clean.han_rich import MIN_HAN
from pipeline.clean.profiles import PROFILES
from pipeline.clean.report.sentencepiece_flags import DEFAULT_MAX_LINE_BYTES, LineStats
from pipeline.clean.rule import Effect
from pipeline.clean.utf16 import (
    HAN_HIGH_SURROGATES,
    HAN_UNITS,
    SENTENCE_ENDS,
    UNIT_COUNT,
    Utf16Text,
    count_distinct,
    decode_utf16,
    letter_units,
)
from pipeline.errors import InternalError
from pipeline.readers.detection.common_characters import SIMPLIFIED, TRADITIONAL
from pipeline.runtime.ledger import Ledger, LedgerTally

_MIN_STOP_RATIO = 0.005  # sentence ends per Han character; punctuated books have 0.03 to 0.1
_MIN_TAGS, _MIN_TAG_RATIO = 3, 0.0001  # tags and references left in the Chinese text of a file, and per character
_MIN_SAMPLE = 50  # characters: with fewer, a file's punctuation and language are not judged
_MAX_HISTOGRAMS = 64  # that are kept before they are merged into one
MAX_EXAMPLES, EXAMPLE_CHARACTERS = 5, 80  # of the dropped documents of each reason
_SORT_BELOW = 1 << 13  # units: counting fewer is faster by sorting
_COUNTS = ("bytes", "documents", "characters", "letters", "han", "sentence_ends", "simplified", "traditional", "tags")

Histogram = tuple[np.ndarray, np.ndarray]  # UTF-16 units that occur, in order, and the frequency of each


class RuleTally(msgspec.Struct):
    """Characters that entered one rule, that it removed and added, and that left it, and the cases that it counted."""

    characters_in: int = 0
    removed: int = 0
    added: int = 0
    characters_out: int = 0
    cases: dict[str, int] = {}

    def add(self, other: RuleTally) -> None:
        self.characters_in += other.characters_in
        self.removed += other.removed
        self.added += other.added
        self.characters_out += other.characters_out
        add_counts(self.cases, other.cases)


class DroppedCounts(msgspec.Struct):
    """Documents dropped for one reason, and the characters in them."""

    documents: int = 0
    characters: int = 0


class ProfileCounts(msgspec.Struct):
    """Published documents of one profile, and their characters."""

    documents: int = 0
    characters: int = 0

    def add(self, other: ProfileCounts) -> None:
        self.documents += other.documents
        self.characters += other.characters


class FileCounts(msgspec.Struct):
    """One input file.

    `characters`, `letters`, `han` and `sentence_ends` (。！？) count its published text, `profiles` the same by
    profile, `simplified` and `traditional` the common characters of one script alone, `tags` what looks like a tag or
    a reference of HTML in its Chinese text. Letters are those of filters.py.
    `numbers` is the frequency of each chapter number, by heading pattern: {"第N回": {1: 1}}; `missed` has an example of
    each number that is part of no heading.
    `invalid_bytes` counts the places where bytes of the file were invalid in its encoding, each now □; the first is at
    `invalid_offset`.
    """

    name: str
    encoding: str = ""
    bytes: int = 0
    profiles: dict[str, ProfileCounts] = {}
    documents: int = 0
    characters: int = 0
    letters: int = 0
    han: int = 0
    sentence_ends: int = 0
    simplified: int = 0
    traditional: int = 0
    numbers: dict[str, dict[int, int]] = {}
    missed: dict[str, dict[int, str]] = {}
    tags: int = 0
    invalid_bytes: int = 0
    invalid_offset: int = 0

    def add_text(self, histogram: Histogram, profile: str) -> None:
        """Add published text by its histogram."""
        units, counts = histogram
        flags = _unit_flags().take(units)
        characters = _sum(counts, flags & _STARTS_CHARACTER)
        self.characters += characters
        self.profile(profile).characters += characters
        self.letters += _sum(counts, flags & _LETTER)
        self.han += _sum(counts, flags & _HAN)
        self.sentence_ends += _sum(counts, flags & _SENTENCE_END)
        if PROFILES[profile].chinese:
            self.simplified += _sum(counts, flags & _SIMPLIFIED)
            self.traditional += _sum(counts, flags & _TRADITIONAL)

    def add_documents(self, count: int, profile: str) -> None:
        """Add published documents."""
        self.documents += count
        self.profile(profile).documents += count

    def profile(self, name: str) -> ProfileCounts:
        return self.profiles.setdefault(name, ProfileCounts())

    def add(self, other: FileCounts) -> None:
        self.encoding = self.encoding or other.encoding
        for name, share in other.profiles.items():
            self.profile(name).add(share)
        for count in _COUNTS:
            setattr(self, count, getattr(self, count) + getattr(other, count))
        self.invalid_offset = self.invalid_offset if self.invalid_bytes else other.invalid_offset
        self.invalid_bytes += other.invalid_bytes
        for pattern, numbers in other.numbers.items():
            add_counts(self.numbers.setdefault(pattern, {}), numbers)
        for pattern, examples in other.missed.items():
            self.missed[pattern] = {**examples, **self.missed.get(pattern, {})}

    @property
    def is_unpunctuated(self) -> bool:
        is_chinese = any(PROFILES[name].chinese for name in self.profiles)
        return is_chinese and self.han >= _MIN_SAMPLE and self.sentence_ends < _MIN_STOP_RATIO * self.han

    @property
    def has_markup(self) -> bool:
        return self.tags >= max(_MIN_TAGS, _MIN_TAG_RATIO * self.characters)

    @property
    def is_foreign(self) -> bool:
        """True if the file was cleaned as Chinese but few of its letters are Han."""
        is_chinese = all(PROFILES[name].chinese for name in self.profiles)
        return is_chinese and self.letters >= _MIN_SAMPLE and self.han < MIN_HAN * self.letters


class SentenceCounts(msgspec.Struct):
    """The lines of sentences.txt.

    lengths        number of lines of each length in characters
    longest_bytes  size of the longest line
    over_default   lines over SentencePiece's default limit
    unterminated   lines without a sentence end (。！？)
    cuts           cuts in lines that were too long, by the kind of position
    """

    lengths: dict[int, int] = {}
    longest_bytes: int = 0
    over_default: int = 0
    unterminated: int = 0
    cuts: dict[str, int] = {}

    def add_lines(self, characters: np.ndarray, sizes: np.ndarray) -> None:
        """Add lines by their lengths in characters and in bytes of UTF-8."""
        if len(characters):
            if characters.max() < UNIT_COUNT:
                counts = np.bincount(characters)
                lengths = np.flatnonzero(counts)
                counts = counts[lengths]
            else:
                lengths, counts = count_distinct(characters)
            add_counts(self.lengths, dict(zip(lengths.tolist(), counts.tolist(), strict=True)))
            self.longest_bytes = max(self.longest_bytes, int(sizes.max()))
            self.over_default += int(np.count_nonzero(sizes > DEFAULT_MAX_LINE_BYTES))

    def add(self, other: SentenceCounts) -> None:
        add_counts(self.lengths, other.lengths)
        self.longest_bytes = max(self.longest_bytes, other.longest_bytes)
        self.over_default += other.over_default
        self.unterminated += other.unterminated
        add_counts(self.cuts, other.cuts)

    @property
    def count(self) -> int:
        return sum(self.lengths.values())

    def percentile(self, fraction: float) -> int:
        """Return the smallest length that `fraction` of the lines do not exceed; 0 if there are no lines."""
        cumulative, target = 0, fraction * self.count
        for length in sorted(self.lengths):
            cumulative += self.lengths[length]
            if cumulative >= target:
                return length
        return 0


class CleaningReport(msgspec.Struct, eq=False):
    """All counts of a cleaning.

    `characters_in` were read and `characters_out` published; `documents` were published.
    """

    rules: dict[str, RuleTally] = {}
    files: dict[str, FileCounts] = {}
    documents: int = 0
    characters_in: int = 0
    characters_out: int = 0
    histograms: list[Histogram] = []  # of published text; each covers some pages
    dropped: dict[str, DroppedCounts] = {}
    astral: dict[str, int] = {}  # frequencies of characters beyond the first plane
    duplicates: int = 0  # documents that equal an earlier one, dropped or not
    sentences: SentenceCounts = msgspec.field(default_factory=SentenceCounts)
    headings: dict[str, int] = {}  # by pattern
    lines_without_heading: int = 0  # lines that start no chapter
    heading_matches: dict[str, int] = {}  # by pattern of the user, 0 for one without any
    reopened_quotes: int = 0  # “ while another is open
    orphan_quotes: int = 0  # ” while none is open
    near_pairs: dict[str, int] = {}  # counts of --dedup near
    held_out: dict[str, int] = {}  # counts of the text of --decontaminate
    examples: dict[str, list[dict[str, Any]]] = {}  # the first documents dropped for a reason

    @property
    def characters(self) -> dict[str, int]:
        """Frequencies of the published characters."""
        units, counts = _merged(self.histograms)
        is_character = (_unit_flags().take(units) & _IS_CHARACTER).astype(bool)
        characters = decode_utf16(Utf16Text(units[is_character]))
        return {**dict(zip(characters, counts[is_character].tolist(), strict=True)), **self.astral}

    def _keep(self, histograms: list[Histogram]) -> None:
        """Add histograms, and merge them once there are many, so that memory does not grow with the corpus."""
        self.histograms = [*self.histograms, *histograms]
        if len(self.histograms) > _MAX_HISTOGRAMS:
            self.histograms = [_merged(self.histograms)]

    def rule(self, name: str) -> RuleTally:
        return self.rules.setdefault(name, RuleTally())

    def file(self, name: str) -> FileCounts:
        return self.files.setdefault(name, FileCounts(name))

    def drop(self, reason: str, documents: int, characters: int) -> None:
        dropped = self.dropped.setdefault(reason, DroppedCounts())
        dropped.documents += documents
        dropped.characters += characters

    def add_effects(self, characters_in: int, effects: Mapping[str, Effect], characters_out: int) -> None:
        """Add the effects of the rules on a page, in their order, on its number of characters.

        Raises InternalError if the effects do not lead from `characters_in` to `characters_out`.
        """
        self.characters_in += characters_in
        count = characters_in
        for name, effect in effects.items():
            remaining = count - effect.removed + effect.added
            self.rule(name).add(RuleTally(count, effect.removed, effect.added, remaining, effect.counts))
            count = remaining
        if count != characters_out:
            raise InternalError(
                f"the effects of the rules leave {count:,} characters, but the page has {characters_out:,}",
                hint="this is a bug: a rule miscounts",
            )

    def add_text(self, page: Utf16Text) -> Histogram:
        """Add the text of published documents, separated by NUL, and return its histogram."""
        units, counts = histogram = _histogram(page.units)
        flags = _unit_flags().take(units)
        self._keep([histogram])
        if (flags & _IS_SURROGATE).any():
            add_counts(self.astral, _astral(page.units))
        self.characters_out += _sum(counts, flags & _STARTS_CHARACTER)
        return histogram

    def add(self, other: CleaningReport) -> None:
        """Add the counts of another worker. Rules that only the other report has come last."""
        for name, tally in other.rules.items():
            self.rule(name).add(tally)
        for name, file in other.files.items():
            self.file(name).add(file)
        self.documents += other.documents
        self.characters_in += other.characters_in
        self.characters_out += other.characters_out
        for reason, dropped in other.dropped.items():
            self.drop(reason, dropped.documents, dropped.characters)
        self.duplicates += other.duplicates
        self._keep(other.histograms)
        add_counts(self.astral, other.astral)
        self.sentences.add(other.sentences)
        add_counts(self.headings, other.headings)
        self.lines_without_heading += other.lines_without_heading
        self.add_matches(other.heading_matches)
        for reason, examples in other.examples.items():
            self.add_examples(reason, examples)
        self.reopened_quotes += other.reopened_quotes
        self.orphan_quotes += other.orphan_quotes

    def add_examples(self, reason: str, examples: Sequence[dict[str, Any]]) -> None:
        """Count documents dropped for a reason, and keep the first few as examples."""
        if examples:
            self.examples[reason] = [*self.examples.get(reason, []), *examples][:MAX_EXAMPLES]

    def add_matches(self, matches: Mapping[str, int]) -> None:
        for pattern, count in matches.items():
            self.heading_matches[pattern] = self.heading_matches.get(pattern, 0) + count

    def lines(self) -> LineStats:
        """Return the statistics from which the settings for SentencePiece are computed."""
        sentences = self.sentences
        return LineStats(self.characters, sentences.count, sentences.longest_bytes, sentences.over_default)


def check_balance(report: CleaningReport) -> None:
    """Raise InternalError unless every character that was read is published, removed by a rule or dropped."""
    for name, rule in report.rules.items():
        _require_equal(f"the rule {name}", rule.characters_in + rule.added - rule.removed, rule.characters_out)
    _require_equal("the histogram", report.characters_out, sum(report.characters.values()))
    characters = LedgerTally(report.characters_in, report.characters_out)
    for name, rule in report.rules.items():
        characters.record_dropped(name, rule.removed)
        characters.record_added(name, rule.added)
    for reason, dropped in report.dropped.items():
        characters.record_dropped(reason, dropped.characters)
    Ledger(characters=characters).close()


def _require_equal(subject: str, expected: int, actual: int) -> None:
    if actual != expected:
        raise InternalError(
            f"the count of {subject} does not add up: expected {expected:,}, got {actual:,}",
            hint="this is a bug; nothing was published",
        )


def _histogram(units: np.ndarray) -> Histogram:
    if len(units) < _SORT_BELOW:
        return count_distinct(units)
    counts = np.bincount(units, minlength=UNIT_COUNT)
    present = np.flatnonzero(counts > 0)
    return present.astype("<u2"), counts[present]


def _merged(histograms: Sequence[Histogram]) -> Histogram:
    total = np.zeros(UNIT_COUNT, np.int64)
    for units, counts in histograms:
        total[units] += counts
    present = np.flatnonzero(total)
    return present.astype("<u2"), total[present]


def _sum(counts: np.ndarray, mask: np.ndarray) -> int:
    return int(counts[mask.astype(bool)].sum())


_STARTS_CHARACTER, _IS_CHARACTER, _IS_SURROGATE, _HAN, _SENTENCE_END, _SIMPLIFIED, _TRADITIONAL = 1, 2, 4, 8, 16, 32, 64
_LETTER = 128


@cache
def _unit_flags() -> np.ndarray:
    """Table over units of the flags above. The high surrogate of a Han character has the flags _HAN and _LETTER."""
    table = np.full(UNIT_COUNT, _STARTS_CHARACTER | _IS_CHARACTER, np.uint8)
    table[0] = 0
    table[0xD800:0xDC00] = _STARTS_CHARACTER | _IS_SURROGATE
    table[0xDC00:0xE000] = _IS_SURROGATE
    table[letter_units()] |= _LETTER
    for first, last in (*HAN_UNITS, HAN_HIGH_SURROGATES):
        table[first : last + 1] |= _HAN | _LETTER
    for flag, characters in ((_SENTENCE_END, SENTENCE_ENDS), (_SIMPLIFIED, SIMPLIFIED), (_TRADITIONAL, TRADITIONAL)):
        table[[ord(character) for character in characters]] |= flag
    return table


def _astral(units: np.ndarray) -> dict[str, int]:
    """Return the frequencies of characters beyond the first plane."""
    high = np.flatnonzero((units[:-1] & 0xFC00) == 0xD800)
    high = high[(units[high + 1] & 0xFC00) == 0xDC00]
    code_points = 0x10000 + ((units[high].astype(np.int64) & 0x3FF) << 10) + (units[high + 1] & 0x3FF)
    present, counts = count_distinct(code_points)
    return {chr(code_point): count for code_point, count in zip(present.tolist(), counts.tolist(), strict=True)}


def add_counts(counts: dict[Any, int], increments: Mapping[Any, int]) -> None:
    """Add counts, without creating keys for zeros."""
    for key, count in increments.items():
        if count:
            counts[key] = counts.get(key, 0) + count
