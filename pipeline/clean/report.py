"""The report of a cleaning: what each rule met, what came out, and what a person should look at.

A worker fills a `Report` of its own and sends it to the parent, which adds them up in any order. Characters are code
points throughout. What is said to a person and to the next stage follows from the counts alone: `to_json` is
report.json, `table` is one screen, `check` proves that no character went uncounted. `samples` shows a rule at work.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from pipeline.clean import advice
from pipeline.clean.alphabet import ENDS, HAN
from pipeline.clean.codes import UNITS, Codes, text_of
from pipeline.clean.rule import Effect
from pipeline.errors import InternalError

SCHEMA = 1
LINES, COLUMNS = 24, 110  # of the table, at most: one screen
_HAN = re.compile(f"[{HAN}]")
_UNPUNCTUATED = 0.005  # marks that end a sentence per Han character; in punctuated books there are 0.03 to 0.1
_CHINESE = 0.5  # share of Han in a Chinese text; in books and poems it is 0.8 to 0.9
_ENOUGH = 50  # characters: fewer say nothing of a file's punctuation or language
_MANY = 64  # histograms that are kept before one is made of them
_SMALL = 1 << 13  # units: of fewer a histogram is made by sorting
_LISTED = 100  # stretches of missing numbers in report.json, at most
_TOP, _CAUTIONS, _NAME = 3, 5, 14  # in the table: of what a rule met, lines of warnings, columns of names


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
        _add(self.seen, other.seen)


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
            _add(self.numbers.setdefault(pattern, {}), numbers)

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
            lengths, counts = np.unique(characters, return_counts=True)
            _add(self.lengths, dict(zip(lengths.tolist(), counts.tolist(), strict=True)))
            self.longest = max(self.longest, int(sizes.max()))
            self.over += int(np.count_nonzero(sizes > advice.DEFAULT_LINE))

    def add(self, other: Sentences) -> None:
        _add(self.lengths, other.lengths)
        self.longest = max(self.longest, other.longest)
        self.over += other.over
        self.unterminated += other.unterminated
        _add(self.resplit, other.resplit)

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
        return {**dict(zip(text_of(units[plain]), counts[plain].tolist(), strict=True)), **self.astral}

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
        units, counts = found = _histogram(page)
        kind = _kinds().take(units)
        self._keep([found])
        if (kind & _HALF).any():
            _add(self.astral, _astral(page))
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
        _add(self.astral, other.astral)
        self.sentences.add(other.sentences)
        _add(self.headings, other.headings)
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


def to_json(report: Report) -> dict[str, Any]:
    """report.json: plain data that depends on the counts alone, its lists in a fixed order and its dicts sorted.

    files        of each: name, encoding, bytes, profile, documents, characters, han, unpunctuated
    documents    in, out, dropped by reason, duplicates
    characters   in, out, dropped by reason (with its documents), kinds, han, histogram of what was published
    rules        in their order, of each: name, in, removed, added, out, seen
    sentences    count, characters (p50, p95, p99, max), lengths, longest_bytes, over_4192_bytes, unterminated, resplit
    headings     patterns, unheaded, series: by file and pattern first, last, missing and repeated
                 (a file "" stands for all those that have one chapter)
    quotes       reopened (“ while one is open), orphans (” while none is)
    warnings     what a person should look at, a line each
    defaults     what SentencePiece's defaults would do to this text, a line each
    tokenizer    the settings for SentencePiece that suit this text, see advice.Flags
    """
    characters, lines, sentences = report.characters, report.lines(), report.sentences
    return {
        "schema": SCHEMA,
        "files": [_file(file) for _, file in sorted(report.files.items())],
        "documents": {
            "in": _documents(report),
            "out": report.documents,
            "dropped": {reason: each.documents for reason, each in sorted(report.dropped.items())},
            "duplicates": report.duplicates,
        },
        "characters": {
            "in": report.came,
            "out": report.out,
            "dropped": {reason: each.characters for reason, each in sorted(report.dropped.items())},
            "kinds": len(characters),
            "han": _han(characters),
            "histogram": dict(sorted(characters.items())),
        },
        "rules": [
            {
                "name": name,
                "in": tally.came,
                "removed": tally.removed,
                "added": tally.added,
                "out": tally.out,
                "seen": dict(sorted(tally.seen.items())),
            }
            for name, tally in report.rules.items()
        ],
        "sentences": {
            "count": sentences.count,
            "characters": _percentiles(sentences),
            "lengths": {str(length): count for length, count in sorted(sentences.lengths.items())},
            "longest_bytes": sentences.longest,
            f"over_{advice.DEFAULT_LINE}_bytes": sentences.over,
            "unterminated": sentences.unterminated,
            "resplit": dict(sorted(sentences.resplit.items())),
        },
        "headings": {
            "patterns": dict(sorted(report.headings.items())),
            "unheaded": report.unheaded,
            "series": [_gaps(*each) for each in _series(report)],
        },
        "quotes": {"reopened": report.reopened, "orphans": report.orphans},
        "warnings": warnings(report),
        "defaults": advice.warnings(lines),
        "tokenizer": msgspec.structs.asdict(advice.flags(lines)),
    }


def _file(file: File) -> dict[str, Any]:
    kept = ("name", "encoding", "bytes", "profile", "documents", "characters", "han")
    return {**{field: getattr(file, field) for field in kept}, "unpunctuated": file.is_unpunctuated}


def _documents(report: Report) -> int:
    """Documents that there were before any was dropped."""
    return report.documents + sum(each.documents for each in report.dropped.values())


def _percentiles(sentences: Sentences) -> dict[str, int]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: sentences.percentile(share) for name, share in shares.items()}


def _series(report: Report) -> list[tuple[str, str, dict[int, int]]]:
    """The numbers of chapters by file and pattern. Files of one chapter each are one book together."""
    found: dict[tuple[str, str], dict[int, int]] = {}
    for name, file in sorted(report.files.items()):
        for pattern, numbers in file.numbers.items():
            _add(found.setdefault((name if len(numbers) > 1 else "", pattern), {}), numbers)
    return [(name, pattern, numbers) for (name, pattern), numbers in sorted(found.items())]


def _gaps(name: str, pattern: str, numbers: Mapping[int, int]) -> dict[str, Any]:
    present = sorted(numbers)
    missing = [(a + 1, b - 1) for a, b in pairwise(present) if b > a + 1]
    return {
        "file": name,
        "pattern": pattern,
        "first": present[0],
        "last": present[-1],
        "missing": [str(a) if a == b else f"{a}-{b}" for a, b in missing[:_LISTED]],
        "repeated": [number for number in present if numbers[number] > 1][:_LISTED],
    }


def warnings(report: Report) -> list[str]:
    """What a person should look at before the next stage, the gravest first; a line each."""
    files = [file for _, file in sorted(report.files.items())]
    found = []
    if plain := [file.name for file in files if file.is_unpunctuated]:
        found.append(f"NO PUNCTUATION in {_names(plain, files)}: their sentences are lines or windows, not sentences")
    if foreign := [file for file in files if file.is_foreign]:
        han, of = sum(file.han for file in foreign), sum(file.characters for file in foreign)
        found.append(
            f"NOT CHINESE, {han / of:.0%} Han, in {_names([file.name for file in foreign], files)}: --profile?"
        )
    for name, pattern, numbers in _series(report):
        gaps, where = _gaps(name, pattern, numbers), _visible(name) or "all files"
        said = [f"{what} {_few(gaps[what])}" for what in ("missing", "repeated") if gaps[what]]
        if said:
            found.append(f"chapters {pattern} {gaps['first']} to {gaps['last']} of {where}: {', '.join(said)}")
    return found


def _names(names: Sequence[str], files: Sequence[File]) -> str:
    return f"{len(names):,} of {len(files):,} files ({_few([_visible(name) for name in names], most=2)})"


def _few(items: Sequence[object], *, most: int = 8) -> str:
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def table(report: Report) -> list[str]:
    """The report on one screen: at most `LINES` lines of at most `COLUMNS` columns."""
    return shown(to_json(report))


def shown(told: Mapping[str, Any]) -> list[str]:
    """The table of a report.json that was published."""
    files, documents, characters, sentences = (told[key] for key in ("files", "documents", "characters", "sentences"))
    encodings: dict[str, int] = {}
    for file in files:
        _add(encodings, {file["encoding"]: 1})
    named = f": {_visible(files[0]['name'])}" if len(files) == 1 else ""
    dropped = {**documents["dropped"], "duplicates": documents["duplicates"]}
    han = characters["han"] / max(characters["out"], 1)
    head = [
        _row("files", f"{len(files):,}{named} ({', '.join(f'{n:,} {kind}' for kind, n in sorted(encodings.items()))})"),
        _row("documents", f"{_arrow(documents)}{_listed(dropped, ' (', ')')}"),
        _row("characters", f"{_arrow(characters)}, {characters['kinds']:,} kinds, {han:.1%} Han"),
    ]
    lengths = _listed(sentences["characters"], "; ", " characters")
    tail = [_row("sentences", f"{sentences['count']:,}{lengths}, at most {sentences['longest_bytes']:,} bytes")]
    odd = {"end in no 。！？": sentences["unterminated"]}
    odd |= {"“ reopened": told["quotes"]["reopened"], "orphan ”": told["quotes"]["orphans"]}
    odd |= {f"cut at {where}": count for where, count in sentences["resplit"].items()}
    if said := _listed(odd):
        tail.append(_row("", said))
    if patterns := _listed(told["headings"]["patterns"]):
        unheaded = told["headings"]["unheaded"]
        tail.append(_row("headings", patterns + (f"; {unheaded:,} lines begin none" if unheaded else "")))
    tail += _block("look at", _at_most(told["warnings"], _CAUTIONS, "more: see report.json"))
    tail += _block("spm_train", told["defaults"])
    tail += _block("use", _packed(advice.Flags(**told["tokenizer"]).as_arguments()))
    rules = [_rule(rule) for rule in told["rules"] if rule["removed"] or rule["added"] or rule["seen"]]
    rules = _at_most(rules, LINES - len(head) - len(tail), "more rules: see report.json")
    return [_cut(line) for line in (*head, *rules, *tail)]


def _arrow(counts: Mapping[str, Any]) -> str:
    return f"{counts['in']:,} → {counts['out']:,}"


def _listed(counts: Mapping[str, int], before: str = "", after: str = "") -> str:
    """What there is any of, and how many; "" where there is nothing."""
    said = ", ".join(f"{what} {count:,}" for what, count in counts.items() if count)
    return f"{before}{said}{after}" if said else ""


def _row(name: str, said: str) -> str:
    return f"{name:<{_NAME}}{said}"


def _block(name: str, lines: Sequence[str]) -> list[str]:
    """Lines of one kind, the first of them named."""
    return [_row("" if number else name, line) for number, line in enumerate(lines)]


def _packed(words: Sequence[str]) -> list[str]:
    """Words of ASCII, as many on a line as fit."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > COLUMNS - _NAME:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _rule(rule: Mapping[str, Any]) -> str:
    numbers = [f"{sign}{rule[what]:,}" for sign, what in (("−", "removed"), ("+", "added")) if rule[what]]
    top = sorted(rule["seen"].items(), key=lambda item: (-item[1], item[0]))[:_TOP]
    met = "; ".join(f"{_visible(what)} {count:,}" for what, count in top)
    return _row(f"  {rule['name']}", f"{' '.join(numbers):<18}{met}".rstrip())


def _at_most(lines: Sequence[str], most: int, rest: str) -> list[str]:
    if len(lines) <= most:
        return list(lines)
    return [*lines[: most - 1], f"{len(lines) - most + 1:,} {rest}"]


def _cut(line: str) -> str:
    """`line` in at most `COLUMNS` columns of a terminal."""
    if _columns(line) <= COLUMNS:
        return line
    while _columns(line) > COLUMNS - 1:
        line = line[:-1]
    return line + "…"


def _columns(text: str) -> int:
    """Columns that a text takes: two for a Chinese character or mark, none for one that combines."""
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(unicodedata.combining(each) > 0 for each in text)


def samples(before: str, after: str, most: int = 10) -> list[tuple[str, str]]:
    """What a rule changed in a page: excerpts of about 30 characters before and after it, in the order of the text.

    Each different change comes first once, then again as far as there is room. Only so many changes are looked at
    that a page takes no more than a moment.
    """
    found: dict[tuple[str, str], tuple[str, str]] = {}  # what is shown of a change, and what changed
    i = j = 0
    for _ in range(_LOOKED_AT):
        same = _same(before, after, i, j)
        i, j = i + same, j + same
        if i == len(before) and j == len(after):
            break
        old, new = _change(before, after, i, j)
        excerpt = (_excerpt(before, i, old), _excerpt(after, j, new))
        found.setdefault(excerpt, (before[i : i + old], after[j : j + new]))
        i, j = i + old, j + new
    first = {change: excerpt for excerpt, change in reversed(found.items())}
    chosen = sorted(found, key=lambda excerpt: first[found[excerpt]] != excerpt)[:most]
    return [excerpt for excerpt in found if excerpt in {*chosen}]


_LOOKED_AT = 500  # changes
_WINDOWS = (64, 512, 4_096)  # characters in which the end of a change is looked for
_ANCHOR = 6  # equal characters behind a change, by which its end is known
_AROUND = 12  # characters on either side of a change
_LONG = 24  # characters of a change that are shown


def _same(before: str, after: str, i: int, j: int) -> int:
    """How many characters are equal from `i` and `j` on."""
    size, found = 64, 0
    while True:
        a, b = before[i + found : i + found + size], after[j + found : j + found + size]
        if a == b and a:
            found += len(a)
            size *= 2
        elif size > 64:
            size = 64
        else:
            differing = (place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
            return found + next(differing, min(len(a), len(b)))


def _change(before: str, after: str, i: int, j: int) -> tuple[int, int]:
    """How many characters of each text the change at `i` and `j` takes, until they are equal again."""
    for window in _WINDOWS:
        old, new = before[i : i + window], after[j : j + window]
        if max(len(before) - i, len(after) - j) < window:  # the end of both is an anchor as well
            old, new = old + "\0" * _ANCHOR, new + "\0" * _ANCHOR
        anchors: dict[str, int] = {}
        for place in range(len(new) - _ANCHOR + 1):
            anchors.setdefault(new[place : place + _ANCHOR], place)
        met = ((place, anchors.get(old[place : place + _ANCHOR])) for place in range(len(old) - _ANCHOR + 1))
        ends = [(place, other) for place, other in met if other is not None]
        if ends:
            return min(ends, key=sum)
    # A long stretch that only went, or only came.
    went, came = before.find(after[j : j + window // 64], i), after.find(before[i : i + window // 64], j)
    if went >= 0 and j < len(after):
        return went - i, 0
    if came >= 0 and i < len(before):
        return 0, came - j
    return len(before) - i, len(after) - j


def _excerpt(text: str, place: int, length: int) -> str:
    shown = text[place : place + length]
    if length > _LONG:
        shown = f"{shown[: _LONG // 2]}…{shown[-_LONG // 2 :]}"
    left = text[max(place - _AROUND, 0) : place].rpartition("\0")[2]
    right = text[place + length : place + length + _AROUND].partition("\0")[0]
    return _visible(left + shown + right)


def _visible(text: str) -> str:
    """`text` with escapes for what cannot be seen: line ends, wide spaces, private characters."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _histogram(page: Codes) -> Histogram:
    if len(page) < _SMALL:
        return np.unique(page, return_counts=True)
    found = np.bincount(page, minlength=UNITS)
    units = np.flatnonzero(found)
    return units.astype("<u2"), found[units]


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
    for first, last in ((0x3007, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xD840, 0xD8FF)):
        found[first : last + 1] |= _HAN_UNIT
    found[[ord(each) for each in ENDS]] |= _END
    return found


def _astral(page: Codes) -> dict[str, int]:
    """How often each character beyond the first plane occurs."""
    high = np.flatnonzero((page[:-1] & 0xFC00) == 0xD800)
    high = high[(page[high + 1] & 0xFC00) == 0xDC00]
    points = 0x10000 + ((page[high].astype(np.int64) & 0x3FF) << 10) + (page[high + 1] & 0x3FF)
    found, counts = np.unique(points, return_counts=True)
    return {chr(point): count for point, count in zip(found.tolist(), counts.tolist(), strict=True)}


def _han(characters: Mapping[str, int]) -> int:
    return sum(count for each, count in characters.items() if _HAN.match(each))


def _add(counts: dict[Any, int], more: Mapping[Any, int]) -> None:
    for key, count in more.items():
        if count:
            counts[key] = counts.get(key, 0) + count
