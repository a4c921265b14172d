"""Variants: characters that a reader's own table says are another way to write a character (爲 → 為, 峯 → 峰).

No table comes with this project: which variants are one character depends on the texts (才 and 財 are not), so
folding them is for a person to decide, one pair at a time.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.clean.rule import Rule, Seen
from pipeline.clean.utf16 import UNITS, Codes, codes, distinct, replaced, text_of
from pipeline.errors import BadConfig, InputMissing

_FORM = "one character, a tab, one character in each line"
_UNSEEN = ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp")  # controls, halves of pairs, spaces


def load(path: str | Path) -> dict[str, str]:
    """The table in a file: JSON (an object), CSV or TSV (two columns; blank lines and lines with # are passed over).

    Raises InputMissing, and BadConfig with the file and the line for what is not one character to one character, for
    a character that becomes two different ones, and for a circle.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise InputMissing(f"{path}: no such table of variants", hint="check the path") from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path}: not UTF-8", hint="save the table as UTF-8") from error
    table: dict[str, str] = {}
    for where, pair in _pairs(path, text):
        match pair:
            case [str(variant), str(becomes)]:
                _take(table, variant, becomes, where)
            case _:
                raise BadConfig(f"{where}: not two columns", hint=_FORM)
    return resolved(table, f"{path}: ")


def _pairs(path: Path, text: str) -> Iterable[tuple[str, list[object]]]:
    if path.suffix.lower() == ".json":
        try:
            # As pairs, so that a character that stands twice in the file is seen.
            pairs = json.loads(text, object_pairs_hook=lambda pairs: pairs)
        except (ValueError, RecursionError) as error:
            raise BadConfig(f"{path}: not JSON: {error}", hint='an object such as {"爲": "為"}') from error
        if not text.lstrip().startswith("{"):
            raise BadConfig(f"{path}: not an object", hint='an object such as {"爲": "為"}')
        return [(f"{path}: {pair[0]!r}", list(pair)) for pair in pairs]
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    lines = enumerate(text.split("\n"), 1)
    rows = [(number, row) for number, line in lines for row in csv.reader([line], delimiter=delimiter)]
    return [
        (f"{path}, line {number}", [cell.strip() for cell in row])
        for number, row in rows
        if any(row) and not row[0].lstrip().startswith("#")
    ]


def _take(table: dict[str, str], variant: str, becomes: str, where: str) -> None:
    for character in (variant, becomes):
        if len(character) != 1:
            raise BadConfig(f"{where}: {character!r} is not one character", hint=_FORM)
        if unicodedata.category(character) in _UNSEEN:
            raise BadConfig(f"{where}: {character!r} cannot be seen, and is no variant", hint=_FORM)
    if table.setdefault(variant, becomes) != becomes:
        raise BadConfig(
            f"{where}: {variant} becomes {becomes}, and {table[variant]} before", hint="leave one of the two"
        )


def resolved(table: Mapping[str, str], where: str = "") -> dict[str, str]:
    """`table` with every chain followed to its end (甲 → 乙, 乙 → 丙 makes 甲 → 丙), and nothing that becomes itself.

    So that one pass is enough, and a second one finds nothing. Raises BadConfig for a circle.
    """
    ends: dict[str, str] = {}
    for variant in table:
        trail = [variant]
        while (becomes := table.get(trail[-1], trail[-1])) != trail[-1]:
            if becomes in trail:
                circle = " → ".join([*trail[trail.index(becomes) :], becomes])
                raise BadConfig(f"{where}the variants go round: {circle}", hint="leave one of them out")
            trail.append(becomes)
        if trail[-1] != variant:
            ends[variant] = trail[-1]
    return ends


def rule(table: Mapping[str, str]) -> Rule | None:
    """The rule that folds by `table`, None for a table that changes nothing. It counts every pair: "爲 → 為"."""
    checked: dict[str, str] = {}
    for variant, becomes in table.items():
        _take(checked, variant, becomes, "table of variants")
    near = {a: b for a, b in resolved(checked).items() if ord(a) < UNITS and ord(b) < UNITS}
    far = {a: b for a, b in resolved(checked).items() if a not in near}
    if not near and not far:
        return None
    becomes_unit = np.arange(UNITS, dtype="<u2")
    becomes_unit[[ord(a) for a in near]] = [ord(b) for b in near.values()]
    heads = {int(codes(a).units[0]) for a in (*near, *far)}
    return Rule(
        "variants",
        partial(_page, becomes_unit, far),
        triggers=tuple((head, head) for head in sorted(heads)),
        makes="".join(sorted({*near.values(), *far.values()})),
    )


def _page(becomes: np.ndarray, far: Mapping[str, str], page: Codes, seen: Seen) -> Codes:
    """One pass for what stays in the first plane, another over the text for the rest, if there is any."""
    folded = becomes.take(page.units)
    at = np.flatnonzero(folded != page.units)
    variants, counts = distinct(page.units[at])
    for unit, count in zip(variants.tolist(), counts.tolist(), strict=True):
        seen[f"{chr(unit)} → {chr(becomes[unit])}"] += count
    page = replaced(page, at, folded[at])
    if not far:
        return page

    def fold(found: re.Match[str]) -> str:
        seen[f"{found[0]} → {far[found[0]]}"] += 1
        return far[found[0]]

    return codes(re.sub(f"[{re.escape(''.join(far))}]", fold, text_of(page)))
