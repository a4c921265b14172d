"""Variants: characters that a user's table declares to be another form of a character (爲 → 為, 峯 → 峰).

No table is included: which variants are the same character depends on the texts (才 and 財 are not), so the user
decides on each pair.
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

from pipeline.clean.rule import Counts, Rule
from pipeline.clean.utf16 import UNIT_COUNT, Utf16Text, count_distinct, decode_utf16, encode_utf16, replace_units
from pipeline.errors import BadConfig, InputMissing
from pipeline.runtime.regular_file import regular_file

_FORM = "write two characters on each line, for example 爲 → 為"
_INVISIBLE = ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp")  # categories: controls, surrogates, spaces


def load_table(path: str | Path) -> dict[str, str]:
    """Read a table: JSON (an object), CSV, TSV or `爲 → 為` (two columns; blank lines and lines with # are skipped).

    Raises InputMissing, and BadConfig with the file and the line for an entry that does not map one character to one,
    for a character that maps to two different ones, and for a cycle.
    """
    path = Path(path)
    try:
        text = regular_file(path).read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise InputMissing(f"{path}: no such table of variants", hint="check the path") from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path}: not UTF-8", hint="save the table as UTF-8") from error
    table: dict[str, str] = {}
    for location, pair in _pairs(path, text):
        match pair:
            case [str(variant), str(target)]:
                _add(table, variant, target, location)
            case _:
                raise BadConfig(f"{location}: not two columns", hint=_FORM)
    return resolve_chains(table, f"{path}: ")


def _pairs(path: Path, text: str) -> Iterable[tuple[str, list[object]]]:
    """Return the location, for error messages, and the cells of each entry."""
    if path.suffix.lower() == ".json":
        try:
            # Read as pairs: a dict would hide a character that occurs twice.
            pairs = json.loads(text, object_pairs_hook=lambda pairs: pairs)
        except (ValueError, RecursionError) as error:
            raise BadConfig(f"{path}: not JSON: {error}", hint='write an object such as {"爲": "為"}') from error
        if not text.lstrip().startswith("{"):
            raise BadConfig(f"{path}: not an object", hint='write an object such as {"爲": "為"}')
        return [(f"{path}: {pair[0]!r}", list(pair)) for pair in pairs]
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    lines = enumerate(text.split("\n"), 1)
    rows = [
        (line_number, row)
        for line_number, line in lines
        for row in ([line.split("→")] if "→" in line else csv.reader([line], delimiter=delimiter))
    ]
    return [
        (f"{path}, line {line_number}", [cell.strip() for cell in row])
        for line_number, row in rows
        if any(row) and not row[0].lstrip().startswith("#")
    ]


def _add(table: dict[str, str], variant: str, target: str, location: str) -> None:
    for character in (variant, target):
        if len(character) != 1:
            raise BadConfig(f"{location}: {character!r} is not one character", hint=_FORM)
        if unicodedata.category(character) in _INVISIBLE:
            raise BadConfig(f"{location}: {character!r} is invisible, so it cannot be a variant", hint=_FORM)
    if table.setdefault(variant, target) != target:
        raise BadConfig(
            f"{location}: {variant} maps to {target}, but an earlier entry maps it to {table[variant]}",
            hint="remove one of the two",
        )


def resolve_chains(table: Mapping[str, str], location: str = "") -> dict[str, str]:
    """Return `table` with every chain followed to its end (甲 → 乙, 乙 → 丙 gives 甲 → 丙), without identity pairs.

    This makes the rule idempotent in one pass. Raises BadConfig for a cycle.
    """
    final: dict[str, str] = {}
    for variant in table:
        chain = [variant]
        while (target := table.get(chain[-1], chain[-1])) != chain[-1]:
            if target in chain:
                cycle = " → ".join([*chain[chain.index(target) :], target])
                raise BadConfig(f"{location}the variants form a cycle: {cycle}", hint="remove one of these pairs")
            chain.append(target)
        if chain[-1] != variant:
            final[variant] = chain[-1]
    return final


def rule(table: Mapping[str, str]) -> Rule | None:
    """Return the rule that replaces by `table`, None for a table that changes nothing.

    The rule counts every pair: "爲 → 為".
    """
    checked: dict[str, str] = {}
    for variant, target in table.items():
        _add(checked, variant, target, "table of variants")
    # Pairs of single UTF-16 units are replaced by an array lookup, all others in the text.
    unit_pairs = {a: b for a, b in resolve_chains(checked).items() if ord(a) < UNIT_COUNT and ord(b) < UNIT_COUNT}
    text_pairs = {a: b for a, b in resolve_chains(checked).items() if a not in unit_pairs}
    if not unit_pairs and not text_pairs:
        return None
    unit_table = np.arange(UNIT_COUNT, dtype="<u2")
    unit_table[[ord(a) for a in unit_pairs]] = [ord(b) for b in unit_pairs.values()]
    first_units = {int(encode_utf16(a).units[0]) for a in (*unit_pairs, *text_pairs)}
    return Rule(
        "variants",
        partial(_replace, unit_table, text_pairs),
        triggers=tuple((unit, unit) for unit in sorted(first_units)),
        produces="".join(sorted({*unit_pairs.values(), *text_pairs.values()})),
    )


def _replace(unit_table: np.ndarray, text_pairs: Mapping[str, str], page: Utf16Text, counts: Counts) -> Utf16Text:
    new_units = unit_table.take(page.units)
    positions = np.flatnonzero(new_units != page.units)
    variants, frequencies = count_distinct(page.units[positions])
    for unit, count in zip(variants.tolist(), frequencies.tolist(), strict=True):
        counts[f"{chr(unit)} → {chr(unit_table[unit])}"] += count
    page = replace_units(page, positions, new_units[positions])
    if not text_pairs:
        return page

    def replace(match: re.Match[str]) -> str:
        counts[f"{match[0]} → {text_pairs[match[0]]}"] += 1
        return text_pairs[match[0]]

    return encode_utf16(re.sub(f"[{re.escape(''.join(text_pairs))}]", replace, decode_utf16(page)))
