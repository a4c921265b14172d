"""Rendering of the report: report.json for programs, and a table of one screen for the user.

Both follow from the counts of report.py alone, so equal corpora have equal reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.profiles import PROFILES
from pipeline.clean.report import problems, sentencepiece_flags
from pipeline.clean.report.examples import visible
from pipeline.clean.report.report import (
    CleaningReport,
    FileCounts,
    ProfileCounts,
    SentenceCounts,
    add_counts,
)
from pipeline.clean.utf16 import HAN
from pipeline.runtime.terminal import counted

SCHEMA = 1
_OPTIONAL = ("near_pairs", "held_out", "examples")  # only with the options that they belong to
LINES, COLUMNS = 24, 110  # of the table, at most: one screen
_HAN = lazy_pattern(f"[{HAN}]")
_LABEL_WIDTH = 14
_MAX_CASES, _MAX_WARNINGS = 3, 5  # in the table: cases of a rule, lines of warnings


def to_json(report: CleaningReport) -> dict[str, Any]:
    """Return report.json: plain data that depends on the counts alone, with lists in a fixed order and sorted dicts.

    files        of each: name, encoding, bytes, profile, profiles, documents, characters, han, unpunctuated, and
                 invalid_bytes if it has any
    profiles     published documents and characters by profile, the largest share first
    documents    in, out, dropped by reason, duplicates
    characters   in, out, dropped by reason (of the documents), kinds, han, histogram of the published text
    rules        in their order, of each: name, in, removed, added, out, seen
    sentences    count, characters (p50, p95, p99, max), lengths, longest_bytes, over_4192_bytes, unterminated, resplit
    headings     patterns, unheaded, series: first, last, missing and repeated numbers by file and pattern
                 (the file "" stands for all files of one chapter each)
    quotes       reopened (“ while one is open), orphans (” while none is open)
    near_pairs   with --dedup near: pairs that were compared, those that are similar, and those left out (uncompared)
    held_out     with --decontaminate: documents, those too short to be recognised in part (short), and sequences
    examples     of near duplicates and contaminated documents, with their source and line
    warnings     problems that a user should look at, one line each
    defaults     effects of SentencePiece's defaults on this text, one line each
    tokenizer    the settings for SentencePiece that suit this text, see sentencepiece_flags.Flags
    """
    lines = report.lines()
    return {
        "schema": SCHEMA,
        "files": [_file(file) for _, file in sorted(report.files.items())],
        "profiles": _profiles(report.files.values()),
        "documents": {
            "in": report.documents + sum(dropped.documents for dropped in report.dropped.values()),
            "out": report.documents,
            "dropped": {reason: dropped.documents for reason, dropped in sorted(report.dropped.items())},
            "duplicates": report.duplicates,
        },
        "characters": _characters(report),
        "rules": _rules(report),
        "sentences": _sentences(report.sentences),
        "headings": {
            "patterns": dict(sorted(report.headings.items())),
            "unheaded": report.lines_without_heading,
            "series": [problems.chapter_gaps(*series) for series in problems.chapter_series(report)],
        },
        "quotes": {"reopened": report.reopened_quotes, "orphans": report.orphan_quotes},
        **{name: value for name in _OPTIONAL if (value := getattr(report, name))},
        "warnings": problems.warnings(report),
        "defaults": sentencepiece_flags.warnings(lines),
        "tokenizer": msgspec.structs.asdict(sentencepiece_flags.flags(lines)),
    }


def _file(file: FileCounts) -> dict[str, Any]:
    fields = ("name", "encoding", "bytes", "documents", "characters", "han")
    shares = _profiles([file])
    return {
        **{field: getattr(file, field) for field in fields},
        "profile": ", ".join(shares),
        "profiles": shares,
        "unpunctuated": file.is_unpunctuated,
        **({"invalid_bytes": file.invalid_bytes} if file.invalid_bytes else {}),
    }


def _profiles(files: Iterable[FileCounts]) -> dict[str, Any]:
    """Return the published documents and characters of some files by profile, the largest share first."""
    total: dict[str, ProfileCounts] = {}
    for file in files:
        for name, share in file.profiles.items():
            total.setdefault(name, ProfileCounts()).add(share)
    ranked = sorted(total.items(), key=lambda item: (-item[1].characters, item[0]))
    return {name: msgspec.structs.asdict(share) for name, share in ranked if share.documents}


def _characters(report: CleaningReport) -> dict[str, Any]:
    histogram = report.characters
    return {
        "in": report.characters_in,
        "out": report.characters_out,
        "dropped": {reason: dropped.characters for reason, dropped in sorted(report.dropped.items())},
        "kinds": len(histogram),
        "han": sum(count for character, count in histogram.items() if _HAN.match(character)),
        "histogram": dict(sorted(histogram.items())),
    }


def _rules(report: CleaningReport) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": rule.characters_in,
            "removed": rule.removed,
            "added": rule.added,
            "out": rule.characters_out,
            "seen": dict(sorted(rule.cases.items())),
        }
        for name, rule in report.rules.items()
    ]


def _sentences(sentences: SentenceCounts) -> dict[str, Any]:
    fractions = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        "count": sentences.count,
        "characters": {name: sentences.percentile(fraction) for name, fraction in fractions.items()},
        "lengths": {str(length): count for length, count in sorted(sentences.lengths.items())},
        "longest_bytes": sentences.longest_bytes,
        f"over_{sentencepiece_flags.DEFAULT_MAX_LINE_BYTES}_bytes": sentences.over_default,
        "unterminated": sentences.unterminated,
        "resplit": dict(sorted(sentences.cuts.items())),
    }


def table(report: CleaningReport) -> list[str]:
    """Return the report as a table of at most `LINES` lines and `COLUMNS` columns."""
    return table_from_json(to_json(report))


def table_from_json(data: Mapping[str, Any]) -> list[str]:
    """Return the table of a report.json."""
    head = [*_file_rows(data), *_count_rows(data)]
    tail = [
        *_sentence_rows(data),
        *_heading_rows(data["headings"]),
        *_block("warnings", _at_most(data["warnings"], _MAX_WARNINGS, "more warnings in report.json")),
        *_block("spm defaults", data["defaults"]),
        *_block("spm flags", _wrap(sentencepiece_flags.Flags(**data["tokenizer"]).as_arguments())),
    ]
    rules = [_rule_row(rule) for rule in data["rules"] if rule["removed"] or rule["added"] or rule["seen"]]
    if rules:
        title = _row("rules", f"{'removed, added':<18}most frequent cases")
        rules = [title, *_at_most(rules, LINES - len(head) - len(tail) - 1, "more rules in report.json")]
    return [_fit(line) for line in (*head, *rules, *tail)]


def _file_rows(data: Mapping[str, Any]) -> list[str]:
    files = data["files"]
    if len(files) == 1:
        return [_row("file", f"{visible(files[0]['name'])} ({files[0]['encoding']})")]
    encodings: dict[str, int] = {}
    for file in files:
        add_counts(encodings, {file["encoding"]: 1})
    counts = ", ".join(f"{count:,} {encoding}" for encoding, count in sorted(encodings.items()))
    return [_row("files", f"{len(files):,} ({counts})" if files else "0")]


def _count_rows(data: Mapping[str, Any]) -> list[str]:
    documents, characters = data["documents"], data["characters"]
    faults = [
        _labelled("dropped: ", _listed(documents["dropped"])),
        f"duplicates: {documents['duplicates']:,}" if documents["duplicates"] else "",
    ]
    notes = "; ".join(filter(None, faults))
    han_ratio = characters["han"] / max(characters["out"], 1)
    return [
        _row("documents", _in_out(documents) + (f" ({notes})" if notes else "")),
        _row("characters", f"{_in_out(characters)}; {characters['kinds']:,} distinct; {han_ratio:.1%} Han"),
        *_profile_rows(data.get("profiles", {})),
    ]


def _profile_rows(shares: Mapping[str, Any]) -> list[str]:
    """Return the shares of the profiles; none for Chinese text of one profile. Older reports have no profiles."""
    if set(shares) <= {name for name, profile in PROFILES.items() if profile.chinese} and len(shares) < 2:
        return []
    total = max(sum(share["characters"] for share in shares.values()), 1)
    texts = [
        f"{name} {counted(share['documents'], 'documents')} ({share['characters'] / total:.1%} of the characters)"
        for name, share in shares.items()
    ]
    return [_row("profiles", ", ".join(texts))]


def _sentence_rows(data: Mapping[str, Any]) -> list[str]:
    sentences, quotes = data["sentences"], data["quotes"]
    lengths = _labelled("; characters: ", _listed(sentences["characters"]))
    rows = [_row("sentences", f"{sentences['count']:,}{lengths}; longest {sentences['longest_bytes']:,} bytes")]
    faults = {"without final 。！？": sentences["unterminated"]}
    faults |= {"“ not closed": quotes["reopened"], "” not opened": quotes["orphans"]}
    faults |= {f"split at {level}": count for level, count in sentences["resplit"].items()}
    return [*rows, *_block("", [text] if (text := _listed(faults)) else [])]


def _heading_rows(headings: Mapping[str, Any]) -> list[str]:
    patterns, unheaded = _listed(headings["patterns"]), headings["unheaded"]
    note = f"; {counted(unheaded, 'lines')} without a heading" if unheaded else ""
    return [_row("headings", patterns + note)] if patterns else []


def _rule_row(rule: Mapping[str, Any]) -> str:
    changes = [f"{sign}{rule[key]:,}" for sign, key in (("−", "removed"), ("+", "added")) if rule[key]]
    most_frequent = sorted(rule["seen"].items(), key=lambda item: (-item[1], item[0]))[:_MAX_CASES]
    cases = "; ".join(f"{visible(case)} {count:,}" for case, count in most_frequent)
    return _row(f"  {rule['name']}", f"{' '.join(changes):<18}{cases}".rstrip())


def _in_out(counts: Mapping[str, Any]) -> str:
    return f"{counts['in']:,} → {counts['out']:,}"


def _listed(counts: Mapping[str, int]) -> str:
    """Return the counts that are not zero, with their names."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _labelled(label: str, text: str) -> str:
    return label + text if text else ""


def _row(label: str, text: str) -> str:
    return f"{label:<{_LABEL_WIDTH}}{text}"


def _block(label: str, lines: Sequence[str]) -> list[str]:
    """Return rows, only the first of which has the label."""
    return [_row("" if index else label, line) for index, line in enumerate(lines)]


def _wrap(words: Sequence[str]) -> list[str]:
    """Fill lines with ASCII words."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > COLUMNS - _LABEL_WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _at_most(lines: Sequence[str], limit: int, note: str) -> list[str]:
    if len(lines) <= limit:
        return list(lines)
    return [*lines[: limit - 1], f"{len(lines) - limit + 1:,} {note}"]


def _fit(line: str) -> str:
    """Shorten `line` to at most `COLUMNS` columns of a terminal."""
    from rich.cells import cell_len, set_cell_size  # slower to import than this module

    return line if cell_len(line) <= COLUMNS else set_cell_size(line, COLUMNS - 1).rstrip() + "…"
