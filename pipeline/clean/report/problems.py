"""Problems of a corpus that a user should look at before the next stage, from the counts of report.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipeline.clean.damage import shifted_gbk
from pipeline.clean.report.examples import visible
from pipeline.clean.report.report import CleaningReport, FileCounts, add_counts
from pipeline.clean.rules import script, series, site_ads, unwrap, whitespace

_MAX_LISTED = 100  # ranges of missing chapter numbers, and repeated numbers, in report.json
_MIN_OTHER_SCRIPT, _MIN_OTHER_SHARE = 20, 0.02  # characters of the rarer script that make a text mixed


def chapter_series(report: CleaningReport) -> list[tuple[str, str, dict[int, int]]]:
    """Return the frequencies of chapter numbers by file and pattern. Files of one chapter each count as one book."""
    numbers_of: dict[tuple[str, str], dict[int, int]] = {}
    for name, file in sorted(report.files.items()):
        for pattern, numbers in file.numbers.items():
            add_counts(numbers_of.setdefault((name if len(numbers) > 1 else "", pattern), {}), numbers)
    return [(name, pattern, numbers) for (name, pattern), numbers in sorted(numbers_of.items())]


def chapter_gaps(name: str, pattern: str, numbers: Mapping[int, int]) -> dict[str, Any]:
    """Return the first and the last number of chapters, the ranges that are missing and the numbers that recur."""
    present = sorted(numbers)
    missing = [(a + 1, b - 1) for a, b in pairwise(present) if b > a + 1]
    return {
        "file": name,
        "pattern": pattern,
        "first": present[0],
        "last": present[-1],
        "missing": [str(a) if a == b else f"{a}-{b}" for a, b in missing[:_MAX_LISTED]],
        "repeated": [number for number in present if numbers[number] > 1][:_MAX_LISTED],
    }


def warnings(report: CleaningReport) -> list[str]:
    """Return the problems that a user should look at before the next stage, the most serious first, one line each.

    They are part of report.json, so a change of their wording changes its bytes.
    """
    files = [file for _, file in sorted(report.files.items())]
    cases_of = defaultdict(dict, {name: rule.cases for name, rule in report.rules.items()})
    texts = []
    if unpunctuated := [file.name for file in files if file.is_unpunctuated]:
        texts.append(
            f"NO PUNCTUATION in {_names(unpunctuated, files)}: their sentences are lines or windows, not sentences"
        )
    if damaged := [file for file in files if file.invalid_bytes]:
        count, first = sum(file.invalid_bytes for file in damaged), damaged[0]
        texts.append(
            f"INVALID BYTES: {count:,} in {_names([file.name for file in damaged], files)}, each now □; the first at "
            f"offset {first.invalid_offset:,} of {visible(first.name)}"
        )
    if cases := cases_of[shifted_gbk.NAME]:
        count, passages = cases[shifted_gbk.CASE], cases[shifted_gbk.PASSAGES]
        texts.append(f"GBK READ FROM THE WRONG BYTE: {count:,} characters in {passages:,} passages, each passage now □")
    if foreign := [file for file in files if file.is_foreign]:
        han_ratio = sum(file.han for file in foreign) / sum(file.letters for file in foreign)
        texts.append(
            f"NOT CHINESE: {han_ratio:.0%} of the letters are Han in {_names([file.name for file in foreign], files)}; "
            'if that is right, clean with --profile text (in a recipe: profile = "text" in [clean]), or with the '
            "profile of its markup, such as html"
        )
    if uncompared := report.near_pairs.get("uncompared"):
        texts.append(
            f"NEAR DUPLICATES may remain: {uncompared:,} comparisons were left out, because too many documents share "
            "the same phrases"
        )
    texts += [
        f"NO HEADING matches `{visible(pattern)}`: blanks before a line are part of it; --heading '^\\s*…'?"
        for pattern, count in report.heading_matches.items()
        if not count
    ]
    texts += _missed_chapters(report)
    if marked := [file for file in files if file.has_markup]:
        density = 1000 * sum(file.tags for file in marked) / max(sum(file.characters for file in marked), 1)
        names = _names([file.name for file in marked], files)
        texts.append(f"MARKUP, {density:.1f} tags per 1,000 characters, in {names}: --profile html?")
    texts += _mixed_scripts(files)
    if gap_count := cases_of["spaces"].get(whitespace.GAPS_KEPT):
        texts.append(f"SPACES ARE THE ONLY MARKS between clauses: {gap_count:,} kept; --gaps comma, newline or drop?")
    for name, pattern, numbers in chapter_series(report):
        gaps = chapter_gaps(name, pattern, numbers)
        problems = [f"{problem} {_first_few(gaps[problem])}" for problem in ("missing", "repeated") if gaps[problem]]
        if problems:
            span = f"{gaps['first']} to {gaps['last']} of {visible(name) or 'all files'}"
            texts.append(f"chapters {pattern} {span}: {', '.join(problems)}")
    texts += _wrapped(cases_of["unwrap"])
    if guesses := script.ambiguous_pairs(cases_of["script"]):
        pairs = [f"{pair} {count:,}" for pair, count in guesses.items()]
        texts.append(f"{script.WARNING}: {_first_few(pairs, limit=4)}")
    return texts + _site_ads(cases_of[site_ads.NAME])


def _missed_chapters(report: CleaningReport) -> list[str]:
    """Return a line for each series of chapter numbers that are part of no heading."""
    examples_of: dict[tuple[str, str], dict[int, str]] = {}
    for name, file in sorted(report.files.items()):
        for pattern, examples in file.missed.items():
            unknown = {number: text for number, text in examples.items() if number not in file.numbers.get(pattern, {})}
            entry = examples_of.setdefault((name if len(unknown) > 1 else "", pattern), {})
            entry |= {**unknown, **entry}
    texts = []
    for (name, pattern), examples in sorted(examples_of.items()):
        if run := series.longest_run(examples):
            texts.append(
                f"{len(run):,} chapters {pattern} of {visible(name) or 'all files'} are in lines that are not known as "
                f"headings, such as `{visible(examples[run[0]])}`: --heading REGEX"
            )
    return texts


def _mixed_scripts(files: Sequence[FileCounts]) -> list[str]:
    """Return a line with the shares of simplified and traditional characters if the text has both."""
    counts = {script: sum(getattr(file, script) for file in files) for script in ("simplified", "traditional")}
    common, rare = sorted(counts, key=lambda script: (-counts[script], script))
    share = counts[rare] / max(sum(counts.values()), 1)
    if counts[rare] < _MIN_OTHER_SCRIPT or share < _MIN_OTHER_SHARE:
        return []
    others = [file.name for file in files if getattr(file, rare) > getattr(file, common)]
    names = f"; {rare}: {_names(others, files)}" if others else ""
    return [f"MIXED SCRIPTS, {1 - share:.0%} {common}, {share:.0%} {rare} characters: --script {common}?{names}"]


def _wrapped(cases: Mapping[str, int]) -> list[str]:
    """Return a warning if documents seem hard-wrapped and were not joined."""
    widths = {case.removeprefix(unwrap.KEPT): count for case, count in cases.items() if case.startswith(unwrap.KEPT)}
    ranked = [width for width, _ in sorted(widths.items(), key=lambda item: (-item[1], int(item[0])))]
    count = sum(widths.values())
    documents = f" in {count:,} documents" if count > 1 else ""
    return [f"HARD-WRAPPED at {_first_few(ranked, limit=2)} characters{documents}: --unwrap?"] if widths else []


def _site_ads(cases: Mapping[str, int]) -> list[str]:
    """Return the warning about ads that were not removed."""
    ads = {case.removeprefix(site_ads.LEFT): count for case, count in cases.items() if case.startswith(site_ads.LEFT)}
    if not ads:
        return []
    ranked = sorted(ads, key=lambda ad: (ad == site_ads.OTHERS, -ads[ad], ad))
    examples = [f"{visible(ad)} {ads[ad]:,}" for ad in ranked]
    return [
        f"SITE ADS in {sum(ads.values()):,} lines: --boilerplate site-ads (in a recipe: boilerplate = "
        f'["site-ads"] in [clean]); {_first_few(examples, limit=2)}'
    ]


def _names(names: Sequence[str], files: Sequence[FileCounts]) -> str:
    """Return how many of the files have these names, and the first names, without folders where they stay unique."""
    bases = {file.name.rpartition("/")[2] for file in files}
    shown = [name.rpartition("/")[2] if len(bases) == len(files) else name for name in names]
    return f"{len(names):,} of {len(files):,} files ({_first_few([visible(name) for name in shown], limit=2)})"


def _first_few(items: Sequence[object], *, limit: int = 8) -> str:
    suffix = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + suffix
