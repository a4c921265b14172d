"""What is said of a cleaning: report.json for programs, and one screen for a person.

All of it follows from the counts of report.py alone, so equal corpora are told of in equal words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from pipeline.clean.report import sentencepiece_flags as advice
from pipeline.clean.report.examples import visible
from pipeline.clean.report.report import File, Report, Sentences, add
from pipeline.clean.rules import script
from pipeline.clean.utf16 import HAN

SCHEMA = 1
LINES, COLUMNS = 24, 110  # of the table, at most: one screen
_HAN = re.compile(f"[{HAN}]")
_LISTED = 100  # stretches of missing numbers in report.json, at most
_TOP, _CAUTIONS, _NAME = 3, 5, 14  # in the table: of what a rule met, lines of warnings, columns of names


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
            add(found.setdefault((name if len(numbers) > 1 else "", pattern), {}), numbers)
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
        gaps, where = _gaps(name, pattern, numbers), visible(name) or "all files"
        said = [f"{what} {_few(gaps[what])}" for what in ("missing", "repeated") if gaps[what]]
        if said:
            found.append(f"chapters {pattern} {gaps['first']} to {gaps['last']} of {where}: {', '.join(said)}")
    if "script" in report.rules and (guessed := script.risks(report.rules["script"].seen)):
        found.append(f"{script.WARNING}: {_few([f'{pair} {count:,}' for pair, count in guessed.items()], most=4)}")
    return found


def _names(names: Sequence[str], files: Sequence[File]) -> str:
    return f"{len(names):,} of {len(files):,} files ({_few([visible(name) for name in names], most=2)})"


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
        add(encodings, {file["encoding"]: 1})
    named = f": {visible(files[0]['name'])}" if len(files) == 1 else ""
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
    met = "; ".join(f"{visible(what)} {count:,}" for what, count in top)
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


def _han(characters: Mapping[str, int]) -> int:
    return sum(count for each, count in characters.items() if _HAN.match(each))
