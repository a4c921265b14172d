"""Gaiji: characters that a text could not write as characters, and how it wrote them instead.

    &KR0869; &CB00104;     entities of Kanripo, CBETA and others
    {上休下鳥} <囗贵>      the parts, in words or with signs of composition
    [女*比] [H。/70x]      the same in CBETA's square brackets; an ordinary [注] is none
    ⿰木養                 ideographic description sequences
    U+E10E                 private use characters

Each becomes what the user's maps say; one that no map knows is kept, becomes □, or is dropped.
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

from pipeline.clean.rule import Rule, Seen, on_lines, units
from pipeline.clean.rules.characters import normalise
from pipeline.clean.utf16 import HAN, LACUNA, UNITS, Codes, codes, distinct, replaced, text_of, without
from pipeline.errors import BadConfig, InputMissing

POLICIES = ("keep", "lacuna", "drop")
NOTHING: Mapping[str, str] = MappingProxyType({})

_PRIVATE = "\ue000-\uf8ff\U000f0000-\U0010ffff"
_PART = f"{HAN}□\u2e80-\u2fdf\u31c0-\u31e3{_PRIVATE}"  # of a character: Han, radicals, strokes
_SIGN = r"*/+@|=?()＊／＋＝？\-"
_COMPONENTS = "囗亻氵扌艹忄犭礻衤纟钅饣讠彳辶阝刂灬疒宀冖彡攵罒耂虍糹訁飠釒𥫗卄凵厶匚冂勹廴屮"  # never words
_NUMBER = "〇○零一二三四五六七八九十百千-"  # [一-三] is a reference

_DESCRIBES = frozenset(map(chr, (*range(0x2FF0, 0x3000), 0x31EF)))
_OPERANDS = {"\u2ff2": 3, "\u2ff3": 3, "\u2ffe": 1, "\u2fff": 1}  # the others describe two
_OPERAND = re.compile(f"[{_PART}？]")
_LONGEST = 32  # characters of a description sequence; the longest in use have about 25


@cache
def _gaiji() -> re.Pattern[str]:  # which takes long to compile
    return re.compile(
        rf"""
          & (?: [A-Z]{{2,4}}-? | [A-Z]- ) [0-9A-Za-z+-]{{0,12}} [0-9][0-9A-Za-z]{{0,7}} ;
        | (?<![{{$]) \{{ [{_PART}{_SIGN}，、]{{1,16}} \}} (?!\}})
        | \[ (?= [^\[\]\n\0]{{0,23}} [*/+@?＊／＋？-] ) (?! [{_NUMBER}]+ \] )
          [{_SIGN}]* [{_PART}] [{_PART}{_SIGN}]{{1,22}} \]
        | \[ [A-Z] 。? / [0-9A-Fa-f]{{2,4}} x? \]
        | < (?= [^<>\n\0]{{0,5}} [{_COMPONENTS}*/+@=-] ) [{_PART}] [{_PART}{_SIGN}]{{1,5}} >
        | [\u2ff0-\u2fff\u31ef]
        | [{_PRIVATE}]
        """,
        re.VERBOSE,
    )


_BEGINS = "&{[<"
_BEGIN = re.compile(rf"[&{{\[<\u2ff0-\u2fff\u31ef{_PRIVATE}]")  # found much faster than _gaiji() itself
_PASSES = 16  # a gaiji may be a part of another: [女*{口大}]

_PRIVATE_UNITS = (0xE000, 0xF8FF)
_PRIVATE_PAIRS = (0xDB80, 0xDBFF)  # first units of planes 15 and 16
_TRIGGERS = units(_BEGINS + "\u31ef", (0x2FF0, 0x2FFF), _PRIVATE_UNITS, _PRIVATE_PAIRS)


def rule(policy: str = "lacuna", gaiji_map: Mapping[str, str] = NOTHING, pua_map: Mapping[str, str] = NOTHING) -> Rule:
    """Maps gaiji to characters; those that no map knows follow `policy`, one of POLICIES.

    `gaiji_map` has them as the text writes them, `pua_map` private use characters. Raises BadConfig.
    """
    if policy not in POLICIES:
        raise BadConfig(f"no policy {policy!r} for gaiji", hint=f"policies: {', '.join(POLICIES)}")
    known = {**gaiji_map, **pua_map}
    for source, target in known.items():
        if fault := _fault(source, target):
            raise BadConfig(f"the map of gaiji: {fault}")
    in_place = all(len(target) == 1 and ord(target) < UNITS for source, target in known.items() if len(source) == 1)

    def apply(text: Codes, seen: Seen) -> Codes:
        if in_place and not _is_written().take(text.odd_units).any():
            return _private(text, seen, policy, known)
        begins = text.odd[_begins().take(text.odd_units)]
        return on_lines(lambda lines: codes(_all(text_of(lines), seen, policy, known)), text, begins)

    return Rule("gaiji", apply, _TRIGGERS, "".join(sorted({LACUNA, *"".join(known.values())})))


def _all(text: str, seen: Seen, policy: str, known: Mapping[str, str]) -> str:
    for _ in range(_PASSES):
        before, stayed = text, Counter[str]()
        text = _once(text, seen, stayed, policy, known)
        if text == before:
            break
    seen.update(stayed)
    return text


def _once(text: str, seen: Seen, stayed: Seen, policy: str, known: Mapping[str, str]) -> str:
    pieces, done = [], 0
    for start, end, complete in _find(text):
        if complete:
            becomes = _becomes(text[start:end], 1, seen, stayed, policy, known)
            pieces += [text[done:start], becomes]
            done = end
        else:
            stayed["malformed description sequence kept"] += 1
    return "".join([*pieces, text[done:]])


def _becomes(gaiji: str, count: int, seen: Seen, stayed: Seen, policy: str, known: Mapping[str, str]) -> str:
    """What stands for `gaiji`, which was found `count` times."""
    target = known.get(gaiji)
    name = f"U+{ord(gaiji):04X}" if len(gaiji) == 1 else gaiji
    if target is None and policy == "keep":
        stayed[f"{name} kept"] += count
        stayed["unmapped"] += count
        return gaiji
    seen["unmapped" if target is None else "mapped"] += count
    if target is None:
        target = "" if policy == "drop" else LACUNA
    seen[f"{name} → {target}" if target else f"{name} dropped"] += count
    return target


def _find(text: str) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is complete) of each gaiji, one after another."""
    done = 0
    for begin in _BEGIN.finditer(text):
        start = begin.start()
        if start >= done and (found := _gaiji().match(text, start)):  # else a part of the gaiji before it
            done, complete = _sequence(text, start) if found[0] in _DESCRIBES else (found.end(), True)
            yield start, done, complete


def _sequence(text: str, start: int) -> tuple[int, bool]:
    """Where the description sequence at `start` ends, and whether it is complete there."""
    wanted, at = 1, start
    while wanted and at < min(len(text), start + _LONGEST):
        if text[at] in _DESCRIBES:
            wanted += _OPERANDS.get(text[at], 2) - 1
            at += 1
        elif operand := _OPERAND.match(text, at) or _gaiji().match(text, at):
            wanted, at = wanted - 1, operand.end()
        else:
            break
    return at, not wanted


def _private(text: Codes, seen: Seen, policy: str, known: Mapping[str, str]) -> Codes:
    """`_all` for a text whose gaiji are all private use characters that become one unit or none."""
    first = text.odd[_is_private().take(text.odd_units)]
    pair = text.units[first] < _PRIVATE_UNITS[0]
    second = text.units.take(first + 1, mode="clip").astype(np.int64)
    whole = ~pair | (second & 0xFC00 == 0xDC00)
    first, pair, second = first[whole], pair[whole], second[whole]
    value = text.units[first].astype(np.int64)
    value = np.where(pair, 0x10000 + ((value - 0xD800) << 10) + (second - 0xDC00), value)

    found, counts = distinct(value)
    which = np.searchsorted(found, value)
    becomes = [
        _becomes(chr(code), count, seen, seen, policy, known)
        for code, count in zip(found.tolist(), counts.tolist(), strict=True)
    ]
    changes = np.array([new != chr(code) for new, code in zip(becomes, found, strict=True)], bool)[which]
    unit = np.array([ord(new) if len(new) == 1 and ord(new) < UNITS else 0 for new in becomes], "<u2")[which]
    first, pair, unit = first[changes], pair[changes], unit[changes]
    return without(replaced(text, first, unit), np.sort(np.concatenate((first[unit == 0], first[pair] + 1))))


@cache
def _is_private() -> np.ndarray:
    found = np.zeros(UNITS, bool)
    for low, high in (_PRIVATE_UNITS, _PRIVATE_PAIRS):
        found[low : high + 1] = True
    return found


@cache
def _is_written() -> np.ndarray:
    """Units with which any other gaiji begins."""
    found = np.zeros(UNITS, bool)
    found[[ord(each) for each in (*_BEGINS, *_DESCRIBES)]] = True
    return found


@cache
def _begins() -> np.ndarray:
    """Units with which any gaiji begins."""
    found: np.ndarray = _is_private() | _is_written()
    return found


def load_map(path: Path) -> dict[str, str]:
    """A map of gaiji or of private use characters, from a file of lines `source<TAB>target` or `source,target`,
    from a JSON object, or from a JSON object of chinese-poetry, whose values are lists of candidates.

    A private use character may be written as such, U+E001 or E001. Of several candidates the first that is one
    character counts; without any the gaiji stays unknown. Raises BadConfig with the file and the line, InputMissing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputMissing(f"no map of gaiji at {path}", hint="check the path") from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path} is not in UTF-8", hint="save it as UTF-8") from error
    known: dict[str, str] = {}
    for where, source, target in _entries(path, text):
        source, target = _key(source), _character(target)
        if fault := _fault(source, target):
            raise BadConfig(f"{where}: {fault}", hint="a line is {上休下鳥}<TAB>𪀪, or U+E001<TAB>幡")
        if known.setdefault(source, target) != target:
            raise BadConfig(f"{where}: {source} was {known[source]} before", hint="leave one of the two lines")
    return known


def _entries(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    """(where, source, target) of each entry."""
    if path.suffix.lower() == ".json":
        yield from _json_entries(path, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = line.split("\t") if "\t" in line else next(csv.reader([line]))
        if len(cells) != 2:
            raise BadConfig(f"{path}, line {number}: {len(cells)} columns", hint="two: source<TAB>target")
        yield f"{path}, line {number}", cells[0].strip(), cells[1].strip()


def _json_entries(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{path} is no JSON: {error}", hint="check the file") from error
    if not isinstance(found, dict):
        raise BadConfig(f"{path}: no JSON object", hint='the file holds {"source": "target", …}')
    for source, target in found.items():
        where = f"{path}, {source!r}"
        if isinstance(target, str):
            yield where, source, target
        elif isinstance(target, list):
            fonts = [each.get("font") for each in target if isinstance(each, dict)]
            fitting = [
                font for font in fonts if isinstance(font, str) and len(font) == 1 and not _fault(_key(source), font)
            ]
            if fitting:
                yield where, source, fitting[0]
        else:
            raise BadConfig(f"{where}: no text", hint="a target is a character, or a list of candidates")


def _key(source: str) -> str:
    """`source` as the text has it when this rule meets it."""
    if code := re.fullmatch(r"(?:U\+)?([0-9A-Fa-f]{4,6})", source):
        return chr(int(code[1], 16)) if int(code[1], 16) <= 0x10FFFF else source
    return text_of(normalise(codes(source))[0])


def _character(target: str) -> str:
    code = re.fullmatch(r"U\+([0-9A-Fa-f]{4,6})", target)
    return chr(int(code[1], 16)) if code and int(code[1], 16) <= 0x10FFFF else target


def _fault(source: str, target: str) -> str:
    """What is wrong with this entry of a map, or nothing."""
    if [*_find(source)] != [(0, len(source), True)]:
        return f"{source!r} is no gaiji"
    if not target:
        return f"{source} has no target"
    if _gaiji().search(target) or re.search(r"[&;{}\[\]<>\0\n]", target):
        return f"{source} becomes {target!r}, which is not text"
    return ""
