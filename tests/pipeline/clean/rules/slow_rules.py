"""Reference implementations of the vectorised rules: slow, and easy to check against docs/design/cleaning.md.

Most are one regular expression after another. The fast rules must give the same results.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇□"
_MARKS = "，。！？：；、「」『』《》〈〉（）〔〕【】"  # without “”‘’…—, which other scripts have too
_CHINESE = f"[{_HAN}{_MARKS}]"
_LACUNAE = "■囗○●"
_BLANKS = " \t\u00a0\u3000"


@dataclass(frozen=True)
class Reference:
    name: str
    apply: Callable[[str], str]


_FULL_WIDTH = {ord(ascii_mark): full for ascii_mark, full in zip(",!?;:()", "，！？；：（）", strict=True)}
_VERTICAL = {ord(vertical): flat for vertical, flat in zip("︽︾﹁﹂︵︶", "《》「」（）", strict=True)}
_DIGITS_AND_LETTERS = {
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
}


def _width(text: str) -> str:
    """Make Chinese punctuation full width, digits and Latin letters ASCII: 连天.宋江 → 连天。宋江, ３．１４ → 3.14."""
    text = text.translate({**_VERTICAL, **_DIGITS_AND_LETTERS})
    text = re.sub(r"(?<=[0-9A-Za-z])．(?=[0-9A-Za-z])", ".", text)
    text = re.sub(rf"(?m)(^|[\0{_BLANKS}。；，？！（:：])([0-9]{{1,3}}|[A-Za-z])．", r"\1\2.", text).replace("．", "。")
    text = "\n".join(map(_widen_line, text.split("\n")))
    return re.sub(rf"(?<={_CHINESE})([{_BLANKS}]*)\.([{_BLANKS}]*)(?=$|\n|{_CHINESE}|[”’\"'])", r"\1。\2", text)


def _widen_line(line: str) -> str:
    """Widen the ASCII marks that touch Chinese text, and with one bracket of a pair the marks at the other."""
    for opening, closing in _pairs(line):
        is_ascii = line[opening : closing + 1].translate({1: "(", 2: ")"}).isascii()
        if is_ascii and opening and line[opening - 1].isascii() and line[opening - 1].isalnum():
            line = f"{line[:opening]}\1{line[opening + 1 : closing]}\2{line[closing + 1 :]}"
    while True:
        line = re.sub(_ASCII_MARKS, lambda marks: marks[0].translate(_FULL_WIDTH), line)
        split = [pair for pair in _pairs(line) if line[pair[0]] + line[pair[1]] in ("(）", "（)")]
        if not split:
            return line.translate({1: "(", 2: ")"})
        for pair in split:
            line = line[: pair[0]] + "（" + line[pair[0] + 1 : pair[1]] + "）" + line[pair[1] + 1 :]


def _pairs(line: str) -> list[tuple[int, int]]:
    stack, pairs = list[int](), list[tuple[int, int]]()
    for index, character in enumerate(line):
        if character in "(（":
            stack.append(index)
        elif character in ")）" and stack:
            pairs.append((stack.pop(), index))
    return pairs


_ASCII_MARKS = re.compile(rf"(?<={_CHINESE})[,!?;:(){_BLANKS}]+|[,!?;:(){_BLANKS}]+(?={_CHINESE})")


def _quotes(text: str) -> str:
    """Make ASCII quotes in Chinese text curly by their context; quotes of other kinds are kept."""
    for ascii_quote, opener, closer in (('"', "“", "”"), ("'", "‘", "’")):
        text = "\n".join(quotes_of_line(line, ascii_quote, opener, closer) for line in text.split("\n"))
    return text


def quotes_of_line(line: str, ascii_quote: str, opener: str, closer: str) -> str:
    """The state machine that `_curl` of quotes.py vectorises."""
    is_open, characters = False, list(line)
    for index, character in enumerate(line):
        if character in (opener, closer):
            is_open = character == opener
        if character != ascii_quote:
            continue
        before, after = line[:index].rstrip(_BLANKS + ascii_quote), line[index:].lstrip(_BLANKS + ascii_quote)
        if not (re.search(f"(?:{_CHINESE}|[{_LACUNAE}])$", before) or re.match(f"{_CHINESE}|[{_LACUNAE}]", after)):
            continue
        is_first = ascii_quote not in line[len(before) : index]
        is_open = (is_first and before[-1:] in ("", "：", "“", "‘")) or not is_open
        characters[index] = opener if is_open else closer
    return "".join(characters)


def _spaces(text: str) -> str:
    """Drop spaces beside Chinese text and at the ends of lines; keep them between Latin words."""
    text = re.sub(rf"[ \t\u00a0\u3000]+(?={_CHINESE}|$|\n)", "", text)
    text = re.sub(rf"(?<={_CHINESE})[ \t\u00a0\u3000]+", "", text)
    return re.sub(r"(?m)^[ \t\u00a0\u3000]+", "", text)


def _marks(text: str) -> str:
    """Normalise repeated marks: ...... → ……, -- → ——, ，， → ，, 。。 → 。 (？！ is kept)."""
    text = re.sub(rf"(?<={_CHINESE})(?:[…⋯]+|\.{{3,}}|(?<!。)。{{3,}})+", lambda run: "……"[: len(run[0])], text)
    text = re.sub(rf"(?<={_CHINESE})(?:—+|-{{2,}})+", lambda run: "——"[: len(run[0])], text)
    return re.sub("([，。；：、])\\1+", r"\1", text)


CHINESE = (
    Reference("width", _width),
    Reference("quotes", _quotes),
    Reference("spaces", _spaces),
    Reference("marks", _marks),
)


# Verse

_LETTER = f"[{_HAN}\ue000-\uf8ff]"
_ANNOUNCEMENT = re.compile("(正是|[诗詩词詞赋賦偈]曰|但[见見]|有诗为证|有詩[為爲]證)：[\n“‘「『\"']{0,2}$")


@dataclass(frozen=True)
class VerseRun:
    """Verse in text[start:end], with its last mark: `clauses` of `length` characters each.

    `lead` is the start of the words that announce it, or `start`.
    """

    start: int
    end: int
    clauses: int
    length: int
    lead: int

    @property
    def is_announced(self) -> bool:
        return self.lead < self.start


def verse(text: str) -> list[VerseRun]:
    """Return the verse in `text`, in order: as `_find` of verse.py does, clause by clause."""
    groups: list[list[re.Match[str]]] = []
    for clause in re.finditer(f"(?<!{_LETTER})({_LETTER}+)([，。！？；])", text):
        previous = groups[-1][-1] if groups else None
        is_adjacent = previous and text[previous.end() : clause.start()] in ("", "\n")
        if previous and is_adjacent and len(previous[1]) == len(clause[1]):
            groups[-1].append(clause)
        else:
            groups.append([clause])
    runs = []
    for group in groups:
        length = len(group[0][1])
        before = text[max(0, group[0].start() - 8) : group[0].start()]
        announcement = _ANNOUNCEMENT.search(before)
        if not announcement and before and before[-1] not in "\0\n。！？：“‘「『\"'”’」』":
            while group and group[0][2] not in "。！？":
                group.pop(0)
            group = group[1:]
        while group and group[-1][2] not in "。！？":
            group.pop()
        least = 4 if length > 4 else 10**9
        if announcement:
            least = 2 if length > 4 or announcement[1] == "正是" else 4
        if length in (4, 5, 7) and len(group) >= least:
            start = group[0].start()
            lead = start - len(before) + announcement.start() if announcement else start
            runs.append(VerseRun(start, group[-1].end(), len(group), length, lead))
    return runs


def verse_counts(runs: list[VerseRun]) -> Counter[str]:
    """Return the counts that the rule reports for these runs."""
    counts = Counter(f"runs of {run.length} characters a clause" for run in runs)
    counts["runs that are announced"] = sum(run.is_announced for run in runs)
    counts["characters of verse"] = sum(run.clauses * run.length for run in runs)
    return counts


def verse_on_lines(text: str) -> str:
    """Put the verse in `text` on lines of its own, with announcing words and quotes: the policy "own-unit"."""
    breaks = set()
    for run in verse(text):
        start = run.lead - (text[run.lead - 1 : run.lead] in [*"“‘「『\"'"])
        end = run.end
        while text[end : end + 1] in [*"”’」』\"'"]:
            end += 1
        if text[end : end + 1] not in [*"，、；："]:
            breaks |= {start, end}
    for position in sorted(breaks, reverse=True):
        if not {text[position - 1 : position], text[position : position + 1]} & {"", "\0", "\n"}:
            text = f"{text[:position]}\n{text[position:]}"
    return text
