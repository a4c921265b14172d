"""Gaiji: characters missing from the encoding of a text, and the notations used in their place.

    &KR0869; &M012345;     entities of Kanripo, CBETA, Mojikyo and others
    {上休下鳥} <囗贵>      the components, in words or with composition operators
    [女*比] [H。/70x]      the same in CBETA's square brackets; an ordinary [注] does not count
    ⿰木養                 ideographic description sequences
    U+E10E                 private use characters

The user's maps define the replacements. A gaiji that no map contains is kept, replaced by □ or dropped. Words in
brackets are not gaiji: {大笑} and [北京-上海] stay, see `_is_description`.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import Counts, Rule, apply_to_lines, units
from pipeline.clean.rules.characters import normalise
from pipeline.clean.utf16 import (
    HAN,
    LACUNA,
    UNIT_COUNT,
    Utf16Text,
    count_distinct,
    decode_utf16,
    delete_units,
    encode_utf16,
    replace_units,
)
from pipeline.errors import BadConfig, InputMissing
from pipeline.runtime.regular_file import regular_file

POLICIES = ("keep", "lacuna", "drop")
_EMPTY_MAP: Mapping[str, str] = MappingProxyType({})

_PRIVATE = "\ue000-\uf8ff\U000f0000-\U0010ffff"
_COMPONENT = f"{HAN}□\u2e80-\u2fdf\u31c0-\u31e3{_PRIVATE}"  # Han, radicals, strokes
_OPERATOR = r"*/+@|=?()＊／＋＝？\-"
_RADICALS = (
    "囗亻氵扌艹忄犭礻衤纟钅饣讠彳辶阝刂灬疒宀冖彡攵罒耂虍糹訁飠釒𥫗卄凵厶匚冂勹廴屮"  # never words by themselves
)
_LEFT_RADICALS = "口山巾弓月歹火牛犬目石禾羽舟虫貝足身車酉金革韋頁風食馬骨鬼魚鳥鹿麥"
_RIGHT_RADICALS = "支攴殳隹頁"
_LEVEL_1 = ((b"\xb0", b"\xd7"), (b"\xa4", b"\xc6"))  # first bytes in GB 2312 and in Big5
_MAX_COMPONENTS = 3
_BARE = lazy_pattern(f"[{_COMPONENT}]+")
_NUMERALS = "〇○零一二三四五六七八九十百千-"  # [一-三] is a reference

_DESCRIPTION_OPERATORS = frozenset(map(chr, (*range(0x2FF0, 0x3000), 0x31EF)))
_OPERAND_COUNTS = {"\u2ff2": 3, "\u2ff3": 3, "\u2ffe": 1, "\u2fff": 1}  # all other operators take two
_OPERAND = lazy_pattern(f"[{_COMPONENT}？]")
_MAX_SEQUENCE = 32  # characters of a description sequence; the longest in use have about 25


_GAIJI = lazy_pattern(
    rf"""
      & (?: [A-Z]{{2,4}}-? | [A-Z][0-9]?- ) [0-9A-Za-z+-]{{0,12}} [0-9][0-9A-Za-z]{{0,7}} ;
    | &M[0-9]{{5,6}};
    | (?<![{{$]) \{{ [{_COMPONENT}{_OPERATOR}，、]{{1,16}} \}} (?!\}})
    | \[ (?= [^\[\]\n\0]{{0,23}} [*/+@?＊／＋？-] ) (?! [{_NUMERALS}]+ \] )
      [{_OPERATOR}]* [{_COMPONENT}] [{_COMPONENT}{_OPERATOR}]{{1,22}} \]
    | \[ [A-Z] 。? / [0-9A-Fa-f]{{2,4}} x? \]
    | < (?= [^<>\n\0]{{0,5}} [{_RADICALS}*/+@=-] ) [{_COMPONENT}] [{_COMPONENT}{_OPERATOR}]{{1,5}} >
    | [\u2ff0-\u2fff\u31ef]
    | [{_PRIVATE}]
    """,
    re.VERBOSE,
)
# The inside of brackets that describes a character and can hardly be words:
# 巩/言  女*((奐-大)/比)  果/虫虫     operators between components, one of which at least stands alone
# 上休下鳥  右上加卄  喁左爲禹        components by their positions
_OPERAND_CLASS, _OPERATORS, _SEPARATORS = f"[{_COMPONENT}?？]", r"[*/+@|=＊／＋＝\-]", r"[*/+@|=()＊／＋＝，、\-]"
_DESCRIPTION = lazy_pattern(
    rf"""
      (?= .* {_OPERATORS} ) (?= (?: .* {_SEPARATORS} )? {_OPERAND_CLASS} (?: {_SEPARATORS} | $ ) )
      {_SEPARATORS}* {_OPERAND_CLASS}{{1,2}} (?: {_SEPARATORS}+ {_OPERAND_CLASS}{{1,2}} )* {_SEPARATORS}*
    | {_OPERAND_CLASS}? (?: [上下左右中內内外]{{1,2}} {_OPERAND_CLASS}{{1,2}} ){{2,3}}
    | {_OPERAND_CLASS}? [上下左右中內内外]{{1,2}} [爲為为作从從加] {_OPERAND_CLASS}{{1,2}}
    | {_OPERAND_CLASS}[爲為为]{_OPERAND_CLASS}
    """,
    re.VERBOSE,
)


def _is_description(notation: str) -> bool:
    """Return False if the brackets of a notation may hold words.

    Up to three characters without an operator are components if one of them is rare or never a word by itself, or if
    the outer ones are a radical in its usual position: {口大}, {孛支}, but not {大笑}.
    """
    inside = notation[1:-1]
    if notation[0] not in "{[<" or "A" <= inside[0] <= "Z" or _DESCRIPTION.fullmatch(inside):
        return True
    if len(inside) > _MAX_COMPONENTS or not _BARE.fullmatch(inside):
        return False
    has_radical = inside[0] in _LEFT_RADICALS or inside[-1] in _RIGHT_RADICALS
    return not all(map(_is_usual, inside)) or (has_radical and len(inside) > 1)


def _is_usual(character: str) -> bool:
    """Return True for the 3,755 Han of level 1 of GB 2312 and the 5,401 of Big5, except radicals that are not words."""
    levels = character.encode("gb2312", "ignore"), character.encode("big5", "ignore")
    is_frequent = any(first <= level[:1] <= last for level, (first, last) in zip(levels, _LEVEL_1, strict=True))
    return is_frequent and character not in _RADICALS


_OPENERS = "&{[<"
_START = lazy_pattern(rf"[&{{\[<\u2ff0-\u2fff\u31ef{_PRIVATE}]")  # much faster to search for than _GAIJI itself
_MAX_PASSES = 16  # one gaiji may be a component of another: [女*{口大}]

_PRIVATE_UNITS = (0xE000, 0xF8FF)
_PRIVATE_SURROGATES = (0xDB80, 0xDBFF)  # high surrogates of planes 15 and 16
_TRIGGERS = units(_OPENERS + "\u31ef", (0x2FF0, 0x2FFF), _PRIVATE_UNITS, _PRIVATE_SURROGATES)


def rule(
    policy: str = "lacuna", gaiji_map: Mapping[str, str] = _EMPTY_MAP, pua_map: Mapping[str, str] = _EMPTY_MAP
) -> Rule:
    """Return the rule that maps gaiji to characters, and applies `policy`, one of POLICIES, to unmapped ones.

    The keys of `gaiji_map` are gaiji as the text writes them, those of `pua_map` private use characters. Raises
    BadConfig for an unknown policy or an invalid map.
    """
    if policy not in POLICIES:
        raise BadConfig(f"--gaiji must be one of {', '.join(POLICIES)}, got {policy!r}", hint="choose one of these")
    mapping = {**gaiji_map, **pua_map}
    for source, target in mapping.items():
        if fault := _fault(source, target):
            raise BadConfig(f"the gaiji map is invalid: {fault}", hint="correct or remove this entry")
    fits_one_unit = all(
        len(target) == 1 and ord(target) < UNIT_COUNT for source, target in mapping.items() if len(source) == 1
    )

    def apply(text: Utf16Text, counts: Counts) -> Utf16Text:
        if fits_one_unit and not _is_notation_start().take(text.special_units).any():
            return _replace_private(text, counts, policy, mapping)
        starts = text.special_positions[_is_start().take(text.special_units)]
        return apply_to_lines(
            lambda lines: encode_utf16(_replace_all(decode_utf16(lines), counts, policy, mapping)), text, starts
        )

    return Rule("gaiji", apply, _TRIGGERS, "".join(sorted({LACUNA, *"".join(mapping.values())})))


def _replace_all(text: str, counts: Counts, policy: str, mapping: Mapping[str, str]) -> str:
    for _ in range(_MAX_PASSES):
        previous, kept_counts = text, Counter[str]()
        text = _replace_once(text, counts, kept_counts, policy, mapping)
        if text == previous:
            break
    counts.update(kept_counts)  # of the last pass only, because each pass counts the kept gaiji again
    return text


def _replace_once(text: str, counts: Counts, kept_counts: Counts, policy: str, mapping: Mapping[str, str]) -> str:
    pieces, copied = [], 0
    for start, end, is_complete in _find(text, mapping):
        if is_complete:
            pieces += [text[copied:start], _replacement(text[start:end], 1, counts, kept_counts, policy, mapping)]
            copied = end
        else:
            kept_counts["malformed description sequence kept"] += 1
    return "".join([*pieces, text[copied:]])


def _replacement(
    gaiji: str, count: int, counts: Counts, kept_counts: Counts, policy: str, mapping: Mapping[str, str]
) -> str:
    """Return the replacement of `gaiji`, and count its `count` occurrences."""
    target = mapping.get(gaiji)
    name = f"U+{ord(gaiji):04X}" if len(gaiji) == 1 else gaiji
    if target is None and policy == "keep":
        kept_counts[f"{name} kept"] += count
        kept_counts["unmapped"] += count
        return gaiji
    counts["unmapped" if target is None else "mapped"] += count
    if target is None:
        target = "" if policy == "drop" else LACUNA
    counts[f"{name} → {target}" if target else f"{name} dropped"] += count
    return target


def _find(text: str, mapping: Mapping[str, str]) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end, is_complete) of each gaiji, in order and without overlaps.

    Brackets that may hold words are gaiji only if `mapping` has them.
    """
    end = 0
    for opener in _START.finditer(text):
        start = opener.start()
        if start >= end and (match := _GAIJI.match(text, start)):  # before `end` it is part of the previous gaiji
            if match[0] not in mapping and not _is_description(match[0]):
                continue
            is_sequence = match[0] in _DESCRIPTION_OPERATORS
            end, is_complete = _sequence_end(text, start) if is_sequence else (match.end(), True)
            yield start, end, is_complete


def _sequence_end(text: str, start: int) -> tuple[int, bool]:
    """Return the end of the description sequence at `start`, and True if it has all its operands."""
    missing, position = 1, start  # operands that are still needed
    while missing and position < min(len(text), start + _MAX_SEQUENCE):
        if text[position] in _DESCRIPTION_OPERATORS:
            missing += _OPERAND_COUNTS.get(text[position], 2) - 1
            position += 1
        elif operand := _OPERAND.match(text, position) or _GAIJI.match(text, position):
            missing, position = missing - 1, operand.end()
        else:
            break
    return position, not missing


def _replace_private(text: Utf16Text, counts: Counts, policy: str, mapping: Mapping[str, str]) -> Utf16Text:
    """Do the same as `_replace_all`, vectorised, for a text whose gaiji are all private use characters.

    Each of them must map to one unit or none.
    """
    first = text.special_positions[_is_private().take(text.special_units)]
    is_pair = text.units[first] < _PRIVATE_UNITS[0]
    low = text.units.take(first + 1, mode="clip").astype(np.int64)
    is_valid = ~is_pair | (low & 0xFC00 == 0xDC00)
    first, is_pair, low = first[is_valid], is_pair[is_valid], low[is_valid]
    code_points = text.units[first].astype(np.int64)
    code_points = np.where(is_pair, 0x10000 + ((code_points - 0xD800) << 10) + (low - 0xDC00), code_points)

    kinds, frequencies = count_distinct(code_points)
    kind_index = np.searchsorted(kinds, code_points)
    replacements = [
        _replacement(chr(code_point), count, counts, counts, policy, mapping)
        for code_point, count in zip(kinds.tolist(), frequencies.tolist(), strict=True)
    ]
    is_changed = np.array([new != chr(old) for new, old in zip(replacements, kinds, strict=True)], bool)[kind_index]
    one_unit = [ord(new) if len(new) == 1 and ord(new) < UNIT_COUNT else 0 for new in replacements]
    unit = np.array(one_unit, "<u2")[kind_index]  # 0: dropped
    first, is_pair, unit = first[is_changed], is_pair[is_changed], unit[is_changed]
    return delete_units(
        replace_units(text, first, unit), np.sort(np.concatenate((first[unit == 0], first[is_pair] + 1)))
    )


@cache
def _is_private() -> np.ndarray:
    """Table over units: private use characters, and the high surrogates of such."""
    table = np.zeros(UNIT_COUNT, bool)
    for low, high in (_PRIVATE_UNITS, _PRIVATE_SURROGATES):
        table[low : high + 1] = True
    return table


@cache
def _is_notation_start() -> np.ndarray:
    """Table over units: those that start a gaiji other than a private use character."""
    table = np.zeros(UNIT_COUNT, bool)
    table[[ord(character) for character in (*_OPENERS, *_DESCRIPTION_OPERATORS)]] = True
    return table


@cache
def _is_start() -> np.ndarray:
    """Table over units: those that start any gaiji."""
    table: np.ndarray = _is_private() | _is_notation_start()
    return table


def load_map(path: Path) -> dict[str, str]:
    """Read a map of gaiji or of private use characters.

    The file has lines `source<TAB>target`, `source → target` or `source,target`, or is a JSON object of strings, or is
    a JSON object of chinese-poetry, whose values are lists of candidates. A private use character may be written as
    such, U+E001 or E001. The first candidate of one character is used; a gaiji without one stays unmapped.

    Raises InputMissing, and BadConfig with the file and the line.
    """
    try:
        text = regular_file(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputMissing(f"{path}: no such gaiji map", hint="check the path") from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path}: not UTF-8", hint="save it as UTF-8") from error
    mapping: dict[str, str] = {}
    for location, source, target in _entries(path, text):
        source, target = _key(source), _character(target)
        if fault := _fault(source, target):
            raise BadConfig(f"{location}: {fault}", hint="write {上休下鳥}<TAB>𪀪, or U+E001<TAB>幡")
        if mapping.setdefault(source, target) != target:
            raise BadConfig(
                f"{location}: {source} is already mapped to {mapping[source]}", hint="remove one of the two entries"
            )
    return mapping


def _entries(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (location, source, target) of each entry. The location is for error messages."""
    if path.suffix.lower() == ".json":
        yield from _json_entries(path, text)
        return
    for line_number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        separator = next((mark for mark in "\t→" if mark in line), "")
        cells = line.split(separator) if separator else next(csv.reader([line]))
        if len(cells) != 2:
            raise BadConfig(
                f"{path}, line {line_number}: expected 2 columns, got {len(cells)}", hint="write source<TAB>target"
            )
        yield f"{path}, line {line_number}", cells[0].strip(), cells[1].strip()


def _json_entries(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{path}: invalid JSON: {error}", hint="correct the file") from error
    if not isinstance(entries, dict):
        raise BadConfig(f"{path}: not a JSON object", hint='write {"source": "target", …}')
    for source, target in entries.items():
        location = f"{path}, {source!r}"
        if isinstance(target, str):
            yield location, source, target
        elif isinstance(target, list):
            fonts = [candidate.get("font") for candidate in target if isinstance(candidate, dict)]
            usable = [
                font for font in fonts if isinstance(font, str) and len(font) == 1 and not _fault(_key(source), font)
            ]
            if usable:
                yield location, source, usable[0]
        else:
            raise BadConfig(f"{location}: not a string or list", hint="write a character or a list of candidates")


def _key(source: str) -> str:
    """Return `source` as the text has it when this rule runs: as a character, and normalised."""
    if code := re.fullmatch(r"(?:U\+)?([0-9A-Fa-f]{4,6})", source):
        return chr(int(code[1], 16)) if int(code[1], 16) <= 0x10FFFF else source
    return decode_utf16(normalise(encode_utf16(source))[0])


def _character(target: str) -> str:
    code = re.fullmatch(r"U\+([0-9A-Fa-f]{4,6})", target)
    return chr(int(code[1], 16)) if code and int(code[1], 16) <= 0x10FFFF else target


def _fault(source: str, target: str) -> str:
    """Return the fault of this entry of a map, "" if it is valid."""
    if [*_find(source, {source: target})] != [(0, len(source), True)]:
        return f"{source!r} is not a gaiji"
    if not target:
        return f"{source} has no target"
    if _GAIJI.search(target) or re.search(r"[&;{}\[\]<>\0\n]", target):
        return f"{source} maps to {target!r}, which is not plain text"
    return ""
