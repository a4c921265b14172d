"""Notes: bracketed text that is not part of the work. `袁紹（一作「術」）兵` becomes `袁紹兵`.

Each class of brackets has a policy for its notes: keep them, drop them, drop those that match certain words, or extract
them. A note may contain other notes and span lines, but not documents. Unbalanced brackets stay, and so does bracketed
text longer than a note can be: an extra note does less harm than a lost verse.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import Counts, Rule, textual, units
from pipeline.clean.rules import footnotes
from pipeline.clean.utf16 import LINE_ENDS, SEPARATOR
from pipeline.errors import BadConfig

MAX_LENGTH = 2000  # characters of a note, without the notes that were removed from it
MAX_DEPTH = 3  # a note in a note in a note

BRACKET_CLASSES = ("（）", "［］", "【】", "〔〕", "〖〗", "<>", "〈〉", "{}")
_ASCII = {"()": "（）", "[]": "［］"}  # in Chinese text they mean the same, and are widened later
_CLASS_OF = {bracket: pair for pair in BRACKET_CLASSES for bracket in pair} | {
    bracket: pair for ascii_pair, pair in _ASCII.items() for bracket in ascii_pair
}
_OPENERS = frozenset("([" + "".join(pair[0] for pair in BRACKET_CLASSES))
_WRONG_CLOSERS = frozenset(
    BRACKET_CLASSES.index(pair) + 1 for pair in ("［］", "{}")
)  # may close （ by mistake: （…] and （…}
_MARKS = "，。；：、！？ \t\u3000"  # a line of nothing but these and notes is removed
_ONLY_MARKS = lazy_pattern(f"[{_MARKS}]*")

# Regular expressions that distinguish an editor's note in chinese-poetry from an aside in the verse.
_EDITORIAL = (
    "《/「/〖/[一或原當当本]作/^一本/本列/^疑[應应當当]作/校[作改補补]/校。?\\n?$/^.{1,4}校/[原自本]注/注[：云曰]"
    "/^今?[按案]/^均?[見见]/^以[上下]/^[從从據据].*[改補补本校]/^[錄录]自/^同[前上]/題擬/题拟/[幷并並]序"
    "/^[上中下前後此]?[缺闕]/^[此原].{0,6}[缺闕]/^音.{1,3}$/^[其之][一二三四五六七八九十]"
    "/^[一二三四五六七八九十]+[首章]/^[伯斯][一二三四五六七八九]/^.$"
)
POETRY_POLICIES: Mapping[str, str] = MappingProxyType({"（）": f"drop:{_EDITORIAL}", "〖〗": "drop"})
KANRIPO_POLICIES: Mapping[str, str] = MappingProxyType({"（）": "drop"})
DAIZHIGE_POLICIES: Mapping[str, str] = MappingProxyType({"【】": "drop"})


@dataclass(frozen=True)
class Note:
    """An extracted note. `position` is the number of characters before it in the remaining text."""

    position: int
    brackets: str
    text: str


@dataclass(frozen=True)
class _Policy:
    name: str  # drop or extract
    words: re.Pattern[str] | None = None


Policies = Mapping[str, _Policy]
Span = tuple[int, int]  # from the opener to behind the closer


def rule(policies: Mapping[str, str]) -> Rule:
    """Return the rule that removes notes.

    `policies` maps a class of brackets, such as （）, to keep, drop, extract, or drop:WORDS, where WORDS are regular
    expressions separated by `/`. （） and () are one class, and so are ［］ and []. Raises BadConfig.
    """
    active = _active_policies(policies)
    openers = "".join(sorted(opener for opener in _OPENERS if _CLASS_OF[opener] in active))

    def apply(text: str, counts: Counts) -> str:
        remaining, _ = _remove(text, _find_notes(text, active, counts))
        counts["characters of notes"] += len(text) - len(remaining)
        return remaining

    return textual("notes", apply, units(openers)) if active else Rule("notes", lambda array, counts: array)


def extract(text: str, policies: Mapping[str, str]) -> tuple[str, list[Note]]:
    """Return a document as `rule` leaves it, and its notes in brackets with the policy extract.

    The column separator of a note in two columns, (浙江/), is removed from the text of the note.
    """
    active = _active_policies(policies)
    spans = _find_notes(text, active, Counter())
    remaining, positions = _remove(text, spans)
    notes = []
    for (start, end), position in zip(spans, positions, strict=True):
        brackets, body = _CLASS_OF[text[start]], text[start + 1 : end - 1]
        if active[brackets].name == "extract":
            notes.append(Note(position, brackets, body if re.search(r"[{\[<]", body) else body.replace("/", "")))
    return remaining, notes


def parse_policies(options: Sequence[str]) -> dict[str, str]:
    """Parse command line options BRACKETS=POLICY, such as （）=drop. Raises BadConfig."""
    policies: dict[str, str] = {}
    for option in options:
        brackets, equals, policy = option.partition("=")
        if not equals:
            raise BadConfig(f"--notes {option}: no policy given", hint="write BRACKETS=POLICY, as in （）=drop")
        brackets = _ASCII.get(brackets, brackets)
        if policies.setdefault(brackets, policy) != policy:
            raise BadConfig(
                f"--notes {option}: {brackets} already has the policy {policies[brackets]}",
                hint="give each class of brackets one policy",
            )
    _active_policies(policies)
    return policies


def _active_policies(policies: Mapping[str, str]) -> Policies:
    """Return the validated and compiled policies, except keep, by class of brackets."""
    active = {}
    for brackets, policy in policies.items():
        if brackets == footnotes.NAME:
            if policy not in footnotes.POLICIES:
                raise BadConfig(f"--notes: unknown policy {policy!r} for footnotes", hint="choose keep or drop")
            continue
        pair = _ASCII.get(brackets, brackets)
        name, colon, words = policy.partition(":")
        if pair not in BRACKET_CLASSES:
            raise BadConfig(
                f"--notes: unknown brackets {brackets!r}",
                hint=f"choose from {' '.join((*BRACKET_CLASSES, *_ASCII, footnotes.NAME))}",
            )
        if name not in ("keep", "drop", "extract") or (colon and (name != "drop" or not words.strip("/"))):
            raise BadConfig(
                f"--notes: unknown policy {policy!r}", hint="choose keep, drop, extract, or drop:一作/按/見"
            )
        try:
            pattern = re.compile("|".join(f"(?:{word})" for word in words.split("/") if word)) if colon else None
        except re.error as error:
            raise BadConfig(f"--notes: {policy!r}: {error}", hint="write each word as a regular expression") from error
        if name != "keep":
            active[pair] = _Policy(name, pattern)
    return active


def _find_notes(text: str, active: Policies, counts: Counts) -> list[Span]:
    """Return the spans of the notes to remove, in order. No span contains another."""
    removals: list[tuple[int, int, int]] = []  # start, end, characters removed before
    outer_pairs: list[tuple[int, int]] = []  # of pairs that are in no other so far: start, depth of notes
    removed = 0
    for start, end in _pairs(text, active, counts):
        inner_depth = 0
        while outer_pairs and outer_pairs[-1][0] > start:
            inner_depth = max(inner_depth, outer_pairs.pop()[1])
        policy = active.get(_CLASS_OF[text[start]])
        outer_pairs.append((start, inner_depth + (policy is not None)))
        if policy is None:
            continue
        first_inner = bisect_left(removals, (start,)) if inner_depth else len(removals)
        removed_before = removals[first_inner][2] if first_inner < len(removals) else removed
        fault = ""
        if inner_depth >= MAX_DEPTH:
            fault, removed = "too deep", removed_before
            del removals[first_inner:]  # restore the notes inside
        elif end - start - (removed - removed_before) > MAX_LENGTH:
            fault = "too long"
        elif policy.words and not policy.words.search(_own_text(text, start + 1, end - 1, removals[first_inner:])):
            fault = "without the words"
        else:
            del removals[first_inner:]
            removals.append((start, end, removed_before))
            removed = removed_before + end - start
        if fault:
            counts[f"{_CLASS_OF[text[start]]} kept: {fault}"] += 1
    for start, _, _ in removals:
        brackets = _CLASS_OF[text[start]]
        counts[f"{brackets} {'dropped' if active[brackets].name == 'drop' else 'extracted'}"] += 1
    return [(start, end) for start, end, _ in removals]


def _pairs(text: str, active: Policies, counts: Counts) -> list[Span]:
    """Return the matching pairs of brackets, inner pairs first, and count the unbalanced brackets."""
    kinds, positions = _brackets(text, active)
    note_kinds = {BRACKET_CLASSES.index(pair) + 1 for pair in active}
    openers = _openers(kinds, note_kinds)
    unclosed: list[int] = []
    pairs: list[Span] = []
    unbalanced: list[int] = []
    closed = {opener for opener in openers if opener >= 0}
    for index, kind in enumerate(kinds):
        if kind > 0:
            unclosed.append(index)
            continue
        opener = openers[index]
        if kind and opener < 0 and unclosed and unclosed[-1] not in closed:
            opener_kind = kinds[unclosed[-1]]
            if opener_kind == -kind or (opener_kind in note_kinds and -kind in _WRONG_CLOSERS):
                opener = unclosed[-1]
                counts[f"mixed {text[positions[opener]]}{text[positions[index]]}"] += opener_kind != -kind
        if opener >= 0:
            while (last := unclosed.pop()) != opener:
                unbalanced.append(last)
            pairs.append((positions[opener], positions[index] + 1))
        elif kind:
            unbalanced.append(index)
        else:  # a document ends
            unbalanced += unclosed
            unclosed.clear()
    for index in (*unbalanced, *unclosed):
        if abs(kinds[index]) in note_kinds:
            counts[f"unbalanced {text[positions[index]]}"] += 1
    return pairs


def _brackets(text: str, active: Policies) -> tuple[list[int], list[int]]:
    """Return kinds and positions of the brackets of a page.

    The kind of an opener is the number of its class, counted from 1, that of a closer is its negative. A 0 is
    between the brackets of two documents.
    """
    kind_of = {
        bracket: number if bracket in _OPENERS else -number
        for bracket, pair in _CLASS_OF.items()
        if (number := BRACKET_CLASSES.index(pair) + 1) in _WRONG_CLOSERS or pair in active
    }
    kinds: list[int] = []
    positions: list[int] = []
    previous = 0
    for bracket in re.finditer(f"[{re.escape(''.join(kind_of))}]", text):
        position = bracket.start()
        if (separator := text.find(SEPARATOR, previous, position)) >= 0:
            kinds.append(0)
            positions.append(separator)
        kinds.append(kind_of[text[position]])
        positions.append(position)
        previous = position
    return kinds, positions


def _openers(kinds: Sequence[int], note_kinds: Collection[int]) -> list[int]:
    """Return the index of the opener of each closer, or -1 if none of its class is open.

    A closer of a note skips unclosed openers inside it. Other brackets never skip one: they must not break up a note.
    """
    openers = [-1] * len(kinds)
    unclosed: list[int] = []
    open_counts = [0] * (len(BRACKET_CLASSES) + 1)
    for index, kind in enumerate(kinds):
        if kind > 0:
            unclosed.append(index)
            open_counts[kind] += 1
        elif kind == 0:
            unclosed.clear()
            open_counts = [0] * (len(BRACKET_CLASSES) + 1)
        elif unclosed and (kinds[unclosed[-1]] == -kind or (open_counts[-kind] and -kind in note_kinds)):
            opener = -1
            while opener < 0 or kinds[opener] != -kind:
                opener = unclosed.pop()
                open_counts[kinds[opener]] -= 1
            openers[index] = opener
    return openers


def _own_text(text: str, start: int, end: int, inner: Sequence[tuple[int, int, int]]) -> str:
    """Return text[start:end] without the notes that were removed from it."""
    if not inner:
        return text[start:end]
    pieces = []
    for inner_start, inner_end, _ in inner:
        pieces.append(text[start:inner_start])
        start = inner_end
    return "".join([*pieces, text[start:end]])


def _remove(text: str, spans: Sequence[Span]) -> tuple[str, list[int]]:
    """Return the text without `spans`, and the position of each span in it.

    If only marks would remain of a line, it is removed as well.
    """
    pieces: list[str] = []
    positions: list[int] = []
    copied = length = index = 0
    while index < len(spans):
        start, end = spans[index]
        group = [(start, end)]
        while index + len(group) < len(spans):  # add following spans while only marks separate them
            following = spans[index + len(group)]
            if not _ONLY_MARKS.fullmatch(text, end, following[0]):
                break
            end = following[1]
            group.append(following)
        index += len(group)
        if line := _emptied_line(text, start, end, copied):
            group = [line, *((line[1], line[1]) for _ in group[1:])]
        for start, end in group:
            pieces.append(text[copied:start])
            length += start - copied
            positions.append(length)
            copied = end
    return "".join([*pieces, text[copied:]]), positions


def _emptied_line(text: str, start: int, end: int, copied: int) -> Span | None:
    """Return the line around text[start:end], with one of its newlines, if the remainder of the line is only marks."""
    while start > copied and text[start - 1] in _MARKS:
        start -= 1
    if marks := _ONLY_MARKS.match(text, end):
        end = marks.end()
    if (start and text[start - 1] not in LINE_ENDS) or (end < len(text) and text[end] not in LINE_ENDS):
        return None
    if start > copied and text[start - 1] == "\n":
        return start - 1, end
    return start, end + (end < len(text) and text[end] == "\n")
