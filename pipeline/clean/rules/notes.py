"""Notes: what stands in brackets and is not the text. `袁紹（一作「術」）兵` becomes `袁紹兵`.

For each class of brackets it is said what to do with the notes: keep them, drop them, drop those with one of some
words, or extract them. A note may hold other notes and may span lines, but not documents. A bracket without its
partner stays, and so does what is longer than a note can be: better a note too many than a verse less.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.clean.rule import Rule, Seen, textual, units
from pipeline.clean.utf16 import LINE_ENDS, SEPARATOR
from pipeline.errors import BadConfig

LONGEST = 2000  # characters of a note, without the notes that were taken out of it
DEEPEST = 3  # a note in a note in a note

CLASSES = ("（）", "［］", "【】", "〔〕", "〖〗", "<>", "〈〉", "{}")
_ASCII = {"()": "（）", "[]": "［］"}  # beside Chinese text they are the same, and widened
_CLASS_OF = {bracket: pair for pair in CLASSES for bracket in pair} | {
    bracket: pair for ascii_pair, pair in _ASCII.items() for bracket in ascii_pair
}
_OPENERS = frozenset("([" + "".join(pair[0] for pair in CLASSES))
_STRAY = frozenset(CLASSES.index(pair) + 1 for pair in ("［］", "{}"))  # close （… where no ） does: （…] and （…}
_MARKS = "，。；：、！？ \t\u3000"  # what may be left of a line that was nothing but notes
_ONLY_MARKS = re.compile(f"[{_MARKS}]*")

# What tells that a note of chinese-poetry is an editor's, and not an aside in the verse: regular expressions.
_OF_EDITORS = (
    "《/「/〖/[一或原當当本]作/^一本/本列/^疑[應应當当]作/校[作改補补]/校。?\\n?$/^.{1,4}校/[原自本]注/注[：云曰]"
    "/^今?[按案]/^均?[見见]/^以[上下]/^[從从據据].*[改補补本校]/^[錄录]自/^同[前上]/題擬/题拟/[幷并並]序"
    "/^[上中下前後此]?[缺闕]/^[此原].{0,6}[缺闕]/^音.{1,3}$/^[其之][一二三四五六七八九十]"
    "/^[一二三四五六七八九十]+[首章]/^[伯斯][一二三四五六七八九]/^.$"
)
POETRY: Mapping[str, str] = MappingProxyType({"（）": f"drop:{_OF_EDITORS}", "〖〗": "drop"})
KANRIPO: Mapping[str, str] = MappingProxyType({"（）": "drop"})
DAIZHIGE: Mapping[str, str] = MappingProxyType({"【】": "drop"})


@dataclass(frozen=True)
class Note:
    """A note that was taken out; `place` is the number of characters before it in the text that is left."""

    place: int
    brackets: str
    text: str


@dataclass(frozen=True)
class _Policy:
    name: str  # drop or extract
    words: re.Pattern[str] | None = None


Policies = Mapping[str, _Policy]
Span = tuple[int, int]  # from the opener to behind the closer


def rule(policies: Mapping[str, str]) -> Rule:
    """Takes the notes out. `policies`: a class of brackets, such as （）, and keep, drop, extract, or drop:WORDS,
    where WORDS are regular expressions parted by `/`. （） and () are one class, ［］ and [] too. Raises BadConfig.
    """
    chosen = _chosen(policies)
    openers = "".join(sorted(opener for opener in _OPENERS if _CLASS_OF[opener] in chosen))

    def apply(text: str, seen: Seen) -> str:
        left, _ = _without(text, _notes(text, chosen, seen))
        seen["characters of notes"] += len(text) - len(left)
        return left

    return textual("notes", apply, units(openers)) if chosen else Rule("notes", lambda array, seen: array)


def extract(text: str, policies: Mapping[str, str]) -> tuple[str, list[Note]]:
    """A document as `rule` leaves it, and its notes in those brackets whose policy is extract.

    The column mark of a note in two columns, (浙江/), is not in the text of the note.
    """
    chosen = _chosen(policies)
    spans = _notes(text, chosen, Counter())
    left, places = _without(text, spans)
    notes = []
    for (start, end), place in zip(spans, places, strict=True):
        brackets, body = _CLASS_OF[text[start]], text[start + 1 : end - 1]
        if chosen[brackets].name == "extract":
            notes.append(Note(place, brackets, body if re.search(r"[{\[<]", body) else body.replace("/", "")))
    return left, notes


def parse_policies(options: Sequence[str]) -> dict[str, str]:
    """The policies of a command line: each option is BRACKETS=POLICY, such as （）=drop. Raises BadConfig."""
    found: dict[str, str] = {}
    for option in options:
        brackets, equals, policy = option.partition("=")
        if not equals:
            raise BadConfig(f"--notes {option}: no policy", hint="write it as （）=drop")
        brackets = _ASCII.get(brackets, brackets)
        if found.setdefault(brackets, policy) != policy:
            raise BadConfig(f"--notes {option}: {brackets} is {found[brackets]} already", hint="give it one policy")
    _chosen(found)
    return found


def _chosen(policies: Mapping[str, str]) -> Policies:
    """The policies that take something out, by class."""
    chosen = {}
    for brackets, policy in policies.items():
        pair = _ASCII.get(brackets, brackets)
        name, colon, words = policy.partition(":")
        if pair not in CLASSES:
            raise BadConfig(f"no brackets {brackets!r} for notes", hint=f"brackets: {' '.join((*CLASSES, *_ASCII))}")
        if name not in ("keep", "drop", "extract") or (colon and (name != "drop" or not words.strip("/"))):
            raise BadConfig(f"no policy {policy!r} for notes", hint="keep, drop, extract, or drop:一作/按/見")
        try:
            pattern = re.compile("|".join(f"(?:{word})" for word in words.split("/") if word)) if colon else None
        except re.error as error:
            raise BadConfig(f"{policy!r} for notes: {error}", hint="each word is a regular expression") from error
        if name != "keep":
            chosen[pair] = _Policy(name, pattern)
    return chosen


def _notes(text: str, chosen: Policies, seen: Seen) -> list[Span]:
    """Where the notes to take out stand, in order; none of them in another one."""
    taken: list[tuple[int, int, int]] = []  # start, end, characters taken out before
    depths: list[tuple[int, int]] = []  # of the pairs so far that are in no other: start, notes in one another
    removed = 0
    for start, end in _pairs(text, chosen, seen):
        inside = 0
        while depths and depths[-1][0] > start:
            inside = max(inside, depths.pop()[1])
        policy = chosen.get(_CLASS_OF[text[start]])
        depths.append((start, inside + (policy is not None)))
        if policy is None:
            continue
        inner = bisect_left(taken, (start,)) if inside else len(taken)
        before = taken[inner][2] if inner < len(taken) else removed
        fault = ""
        if inside >= DEEPEST:
            fault, removed = "too deep", before
            del taken[inner:]  # what was taken out inside comes back
        elif end - start - (removed - before) > LONGEST:
            fault = "too long"
        elif policy.words and not policy.words.search(_rest(text, start + 1, end - 1, taken[inner:])):
            fault = "without the words"
        else:
            del taken[inner:]
            taken.append((start, end, before))
            removed = before + end - start
        if fault:
            seen[f"{_CLASS_OF[text[start]]} kept: {fault}"] += 1
    for start, _, _ in taken:
        brackets = _CLASS_OF[text[start]]
        seen[f"{brackets} {'dropped' if chosen[brackets].name == 'drop' else 'extracted'}"] += 1
    return [(start, end) for start, end, _ in taken]


def _pairs(text: str, chosen: Policies, seen: Seen) -> list[Span]:
    """Brackets that belong together, a pair inside another one before it; those left over are counted."""
    kinds, places = _brackets(text, chosen)
    notes = {CLASSES.index(pair) + 1 for pair in chosen}
    openers = _openers(kinds, notes)
    waiting: list[int] = []
    pairs: list[Span] = []
    alone: list[int] = []
    closed = {opener for opener in openers if opener >= 0}
    for index, kind in enumerate(kinds):
        if kind > 0:
            waiting.append(index)
            continue
        opener = openers[index]
        if kind and opener < 0 and waiting and waiting[-1] not in closed:
            above = kinds[waiting[-1]]
            if above == -kind or (above in notes and -kind in _STRAY):
                opener = waiting[-1]
                seen[f"mixed {text[places[opener]]}{text[places[index]]}"] += above != -kind
        if opener >= 0:
            while (last := waiting.pop()) != opener:
                alone.append(last)
            pairs.append((places[opener], places[index] + 1))
        elif kind:
            alone.append(index)
        else:  # a document ends
            alone += waiting
            waiting.clear()
    for index in (*alone, *waiting):
        if abs(kinds[index]) in notes:
            seen[f"unbalanced {text[places[index]]}"] += 1
    return pairs


def _brackets(text: str, chosen: Policies) -> tuple[list[int], list[int]]:
    """Kinds and places of the brackets of a page: the number of the class of an opener, minus that of a closer, and
    0 between those of two documents.
    """
    kind_of = {
        bracket: number if bracket in _OPENERS else -number
        for bracket, pair in _CLASS_OF.items()
        if (number := CLASSES.index(pair) + 1) in _STRAY or pair in chosen
    }
    kinds: list[int] = []
    places: list[int] = []
    last = 0
    for found in re.finditer(f"[{re.escape(''.join(kind_of))}]", text):
        place = found.start()
        if (parted := text.find(SEPARATOR, last, place)) >= 0:
            kinds.append(0)
            places.append(parted)
        kinds.append(kind_of[text[place]])
        places.append(place)
        last = place
    return kinds, places


def _openers(kinds: Sequence[int], notes: Collection[int]) -> list[int]:
    """For each closer the index of its opener where that has its own class, else -1.

    What was opened inside and never closed is passed over, but no note for the sake of brackets that are none.
    """
    openers = [-1] * len(kinds)
    waiting: list[int] = []
    count = [0] * (len(CLASSES) + 1)
    for index, kind in enumerate(kinds):
        if kind > 0:
            waiting.append(index)
            count[kind] += 1
        elif kind == 0:
            waiting.clear()
            count = [0] * (len(CLASSES) + 1)
        elif waiting and (kinds[waiting[-1]] == -kind or (count[-kind] and -kind in notes)):
            opener = -1
            while opener < 0 or kinds[opener] != -kind:
                opener = waiting.pop()
                count[kinds[opener]] -= 1
            openers[index] = opener
    return openers


def _rest(text: str, start: int, end: int, taken: Sequence[tuple[int, int, int]]) -> str:
    """text[start:end] without the notes that were taken out of it."""
    if not taken:
        return text[start:end]
    pieces = []
    for first, after, _ in taken:
        pieces.append(text[start:first])
        start = after
    return "".join([*pieces, text[start:end]])


def _without(text: str, spans: Sequence[Span]) -> tuple[str, list[int]]:
    """The text without `spans`, and how many characters are before each of them then.

    A line of which only marks would stay goes with its notes.
    """
    pieces: list[str] = []
    places: list[int] = []
    done = length = index = 0
    while index < len(spans):
        start, end = spans[index]
        inside = [(start, end)]
        while index + len(inside) < len(spans):  # those that follow it, with nothing but marks between
            following = spans[index + len(inside)]
            if not _ONLY_MARKS.fullmatch(text, end, following[0]):
                break
            end = following[1]
            inside.append(following)
        index += len(inside)
        if line := _line(text, start, end, done):
            inside = [line, *((line[1], line[1]) for _ in inside[1:])]
        for start, end in inside:
            pieces.append(text[done:start])
            length += start - done
            places.append(length)
            done = end
    return "".join([*pieces, text[done:]]), places


def _line(text: str, start: int, end: int, done: int) -> Span | None:
    """The line of text[start:end] with one of its newlines, if but for marks there is nothing else in it."""
    while start > done and text[start - 1] in _MARKS:
        start -= 1
    if marks := _ONLY_MARKS.match(text, end):
        end = marks.end()
    if (start and text[start - 1] not in LINE_ENDS) or (end < len(text) and text[end] not in LINE_ENDS):
        return None
    if start > done and text[start - 1] == "\n":
        return start - 1, end
    return start, end + (end < len(text) and text[end] == "\n")
