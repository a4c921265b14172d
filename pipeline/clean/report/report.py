"""The report of a cleaning: what each rule met, what came out, and what a person should look at.

A worker fills a `Report` of its own and sends it to the parent, which adds them up in any order. Characters are code
points throughout. What is said to a person and to the next stage follows from the counts alone: `to_json` is
report.json, `table` is one screen, `check` proves that no character went uncounted. `samples` shows a rule at work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np

from pipeline.clean.report import sentencepiece_flags as advice
from pipeline.clean.rule import Effect
from pipeline.clean.utf16 import ENDS, HAN_BEYOND, HAN_UNITS, UNITS, Codes, distinct, text_of
from pipeline.errors import InternalError

_UNPUNCTUATED = 0.005  # marks that end a sentence per Han character; in punctuated books there are 0.03 to 0.1
_CHINESE = 0.5  # share of Han in a Chinese text; in books and poems it is 0.8 to 0.9
_ENOUGH = 50  # characters: fewer say nothing of a file's punctuation or language
_MANY = 64  # histograms that are kept before one is made of them
_SMALL = 1 << 13  # units: of fewer a histogram is made by sorting


Histogram = tuple[np.ndarray, np.ndarray]  # UTF-16 units that occur, in order, and how often each does


class Tally(msgspec.Struct):
    """One rule: characters that came to it, that it removed and added, and that left it; and what it met, in words."""

    came: int = 0
    removed: int = 0
    added: int = 0
    out: int = 0
    seen: dict[str, int] = {}

    def count(self, came: int, out: int, seen: Mapping[str, int]) -> None:
        """Add one page, on which the rule either removed characters or added some."""
        self.add(Tally(came, max(came - out, 0), max(out - came, 0), out, dict(seen)))

    def add(self, other: Tally) -> None:
        self.came += other.came
        self.removed += other.removed
        self.added += other.added
        self.out += other.out
        add(self.seen, other.seen)


class Dropped(msgspec.Struct):
    """Documents that were dropped for one reason, and the characters that they had left."""

    documents: int = 0
    characters: int = 0


class File(msgspec.Struct):
    """One input file.

    `characters`, `han` and `ends` (。！？) are of what it gave to the corpus; `chinese` says whether its profile takes
    it for Chinese. `numbers` is how often each number of a chapter occurs, by pattern: {"第N回": {1: 1}}.
    """

    name: str
    encoding: str = ""
    bytes: int = 0
    profile: str = ""
    chinese: bool = True
    documents: int = 0
    characters: int = 0
    han: int = 0
    ends: int = 0
    numbers: dict[str, dict[int, int]] = {}

    def measure(self, found: Histogram) -> None:
        """Add published text by its histogram."""
        units, counts = found
        kind = _kinds().take(units)
        self.characters += _sum(counts, kind & _CHARACTER)
        self.han += _sum(counts, kind & _HAN_UNIT)
        self.ends += _sum(counts, kind & _END)

    def add(self, other: File) -> None:
        self.encoding, self.profile = self.encoding or other.encoding, self.profile or other.profile
        self.chinese = self.chinese and other.chinese
        self.bytes += other.bytes
        self.documents += other.documents
        self.characters += other.characters
        self.han += other.han
        self.ends += other.ends
        for pattern, numbers in other.numbers.items():
            add(self.numbers.setdefault(pattern, {}), numbers)

    @property
    def is_unpunctuated(self) -> bool:
        return self.chinese and self.han >= _ENOUGH and self.ends < _UNPUNCTUATED * self.han

    @property
    def is_foreign(self) -> bool:
        """Whether a text that was cleaned as Chinese is none."""
        return self.chinese and self.characters >= _ENOUGH and self.han < _CHINESE * self.characters


class Sentences(msgspec.Struct):
    """The lines of sentences.txt: how many have each length in characters; the longest in bytes; how many are over
    SentencePiece's default limit; how many end in no 。！？; and the cuts in those that were too long, by where."""

    lengths: dict[int, int] = {}
    longest: int = 0
    over: int = 0
    unterminated: int = 0
    resplit: dict[str, int] = {}

    def measure(self, characters: np.ndarray, sizes: np.ndarray) -> None:
        """Add lines by their lengths in characters and in bytes of UTF-8."""
        if len(characters):
            if characters.max() < UNITS:
                counts = np.bincount(characters)
                lengths = np.flatnonzero(counts)
                counts = counts[lengths]
            else:
                lengths, counts = distinct(characters)
            add(self.lengths, dict(zip(lengths.tolist(), counts.tolist(), strict=True)))
            self.longest = max(self.longest, int(sizes.max()))
            self.over += int(np.count_nonzero(sizes > advice.DEFAULT_LINE))

    def add(self, other: Sentences) -> None:
        add(self.lengths, other.lengths)
        self.longest = max(self.longest, other.longest)
        self.over += other.over
        self.unterminated += other.unterminated
        add(self.resplit, other.resplit)

    @property
    def count(self) -> int:
        return sum(self.lengths.values())

    def percentile(self, share: float) -> int:
        """The smallest length that `share` of the lines do not exceed; 0 where there are none."""
        reached, wanted = 0, share * self.count
        for length in sorted(self.lengths):
            reached += self.lengths[length]
            if reached >= wanted:
                return length
        return 0


class Report(msgspec.Struct, eq=False):
    """Everything that a cleaning counted.

    `came` and `out` are characters read and published, `documents` those that were published.
    """

    rules: dict[str, Tally] = {}
    files: dict[str, File] = {}
    documents: int = 0
    came: int = 0
    out: int = 0
    histograms: list[Histogram] = []  # of what was published, some pages each
    dropped: dict[str, Dropped] = {}
    astral: dict[str, int] = {}  # how often each character beyond the first plane was
    duplicates: int = 0  # documents that are equal to one before them, dropped or not
    sentences: Sentences = msgspec.field(default_factory=Sentences)
    headings: dict[str, int] = {}  # by pattern
    unheaded: int = 0  # lines that begin no chapter
    reopened: int = 0  # “ while one was open
    orphans: int = 0  # ” while none was

    @property
    def characters(self) -> dict[str, int]:
        """How often each character was published."""
        units, counts = _together(self.histograms)
        plain = (_kinds().take(units) & _WHOLE).astype(bool)
        return {**dict(zip(text_of(Codes(units[plain])), counts[plain].tolist(), strict=True)), **self.astral}

    def _keep(self, more: list[Histogram]) -> None:
        """Add histograms; of many one is made, so that a corpus of any size has few."""
        self.histograms = [*self.histograms, *more]
        if len(self.histograms) > _MANY:
            self.histograms = [_together(self.histograms)]

    def rule(self, name: str) -> Tally:
        return self.rules.setdefault(name, Tally())

    def file(self, name: str) -> File:
        return self.files.setdefault(name, File(name))

    def drop(self, reason: str, documents: int, characters: int) -> None:
        dropped = self.dropped.setdefault(reason, Dropped())
        dropped.documents += documents
        dropped.characters += characters

    def follow(self, came: int, effects: Mapping[str, Effect], out: int) -> None:
        """Add what the rules did to a page, in their order, on the way from `came` to `out` characters.

        Raises InternalError when their effects do not lead from the one to the other.
        """
        self.came += came
        for name, effect in effects.items():
            left = came - effect.removed + effect.added
            self.rule(name).add(Tally(came, effect.removed, effect.added, left, effect.seen))
            came = left
        if came != out:
            raise InternalError(
                f"the rules leave {came:,} characters of a page that has {out:,}",
                hint="this is a bug: a rule miscounts",
            )

    def measure(self, page: Codes) -> Histogram:
        """Add the text of documents that are published, parted by NUL; returns its histogram."""
        units, counts = found = _histogram(page.units)
        kind = _kinds().take(units)
        self._keep([found])
        if (kind & _HALF).any():
            add(self.astral, _astral(page.units))
        self.out += _sum(counts, kind & _CHARACTER)
        return found

    def add(self, other: Report) -> None:
        """Add what another worker counted. A rule that is new here comes after those that are known."""
        for name, tally in other.rules.items():
            self.rule(name).add(tally)
        for name, file in other.files.items():
            self.file(name).add(file)
        self.documents += other.documents
        self.came += other.came
        self.out += other.out
        for reason, dropped in other.dropped.items():
            self.drop(reason, dropped.documents, dropped.characters)
        self.duplicates += other.duplicates
        self._keep(other.histograms)
        add(self.astral, other.astral)
        self.sentences.add(other.sentences)
        add(self.headings, other.headings)
        self.unheaded += other.unheaded
        self.reopened += other.reopened
        self.orphans += other.orphans

    def lines(self) -> advice.Lines:
        """What the next stage will be trained on."""
        sentences = self.sentences
        return advice.Lines(self.characters, sentences.count, sentences.longest, sentences.over)


def check(report: Report) -> None:
    """Raises InternalError unless every character that was read is published, or counted as removed or dropped."""
    for name, tally in report.rules.items():
        if tally.came + tally.added - tally.removed != tally.out:
            _broken(f"the rule {name}", tally.came + tally.added - tally.removed, tally.out)
    changed = sum(tally.added - tally.removed for tally in report.rules.values())
    left = report.came + changed - sum(each.characters for each in report.dropped.values())
    if left != report.out:
        _broken("the characters", left, report.out)
    if (counted := sum(report.characters.values())) != report.out:
        _broken("the histogram", report.out, counted)


def _broken(what: str, expected: int, found: int) -> None:
    message = f"the ledger of {what} does not add up: {expected:,} expected, {found:,} there"
    raise InternalError(message, hint="this is a bug; nothing was published")


def _histogram(units: np.ndarray) -> Histogram:
    if len(units) < _SMALL:
        return distinct(units)
    found = np.bincount(units, minlength=UNITS)
    there = np.flatnonzero(found > 0)
    return there.astype("<u2"), found[there]


def _together(found: Sequence[Histogram]) -> Histogram:
    total = np.zeros(UNITS, np.int64)
    for units, counts in found:
        total[units] += counts
    units = np.flatnonzero(total)
    return units.astype("<u2"), total[units]


def _sum(counts: np.ndarray, chosen: np.ndarray) -> int:
    return int(counts[chosen.astype(bool)].sum())


_CHARACTER, _WHOLE, _HALF, _HAN_UNIT, _END = 1, 2, 4, 8, 16


@cache
def _kinds() -> np.ndarray:
    """Of each unit whether it begins a character, is one, is half of one, is or begins a Han one, ends a sentence."""
    found = np.full(UNITS, _CHARACTER | _WHOLE, np.uint8)
    found[0] = 0
    found[0xD800:0xDC00] = _CHARACTER | _HALF
    found[0xDC00:0xE000] = _HALF
    for first, last in (*HAN_UNITS, HAN_BEYOND):
        found[first : last + 1] |= _HAN_UNIT
    found[[ord(each) for each in ENDS]] |= _END
    return found


def _astral(units: np.ndarray) -> dict[str, int]:
    """How often each character beyond the first plane occurs."""
    high = np.flatnonzero((units[:-1] & 0xFC00) == 0xD800)
    high = high[(units[high + 1] & 0xFC00) == 0xDC00]
    points = 0x10000 + ((units[high].astype(np.int64) & 0x3FF) << 10) + (units[high + 1] & 0x3FF)
    found, counts = distinct(points)
    return {chr(point): count for point, count in zip(found.tolist(), counts.tolist(), strict=True)}


def add(counts: dict[Any, int], more: Mapping[Any, int]) -> None:
    for key, count in more.items():
        if count:
            counts[key] = counts.get(key, 0) + count
