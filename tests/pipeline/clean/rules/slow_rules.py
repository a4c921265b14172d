"""The rules of layout as they read in the reference, one regular expression after another: slow, and easy to check.
The fast ones must do the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇□"
_MARKS = "，。！？：；、「」『』《》〈〉（）〔〕【】"  # those that only Chinese text has; “”‘’…— are everybody's
_NEAR = f"[{_HAN}{_MARKS}]"
_GAP = "[ \t\u00a0\u3000]*"


@dataclass(frozen=True)
class Rule:
    name: str
    apply: Callable[[str], str]


def _controls(text: str) -> str:
    """Drop control characters other than tab and line ends, and byte order marks."""
    return re.sub("[\x00-\x08\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufeff]", "", text)


def _invisible(text: str) -> str:
    """Drop zero-width and direction marks, soft hyphens and tag characters; Chinese has no use for them."""
    return re.sub("[\xad\u200b-\u200f\u202a-\u202e\u2060-\u2069\U000e0000-\U000e007f]", "", text)


def _newlines(text: str) -> str:
    """One kind of line end: CRLF, CR, NEL, U+2028, U+2029, VT and FF become LF."""
    return re.sub("\r\n|[\r\x0b\x0c\x85\u2028\u2029]", "\n", text)


_FULL_WIDTH = {ord(ascii_mark): full for ascii_mark, full in zip(",!?;:()", "，！？；：（）", strict=True)}
_VERTICAL = {ord(vertical): flat for vertical, flat in zip("︽︾﹁﹂︵︶", "《》「」（）", strict=True)}
_DIGITS_AND_LETTERS = {
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
}


def _width(text: str) -> str:
    """Chinese punctuation is full width, digits and Latin letters are not: 连天.宋江 → 连天。宋江, ３．１４ → 3.14."""
    text = text.translate({**_VERTICAL, **_DIGITS_AND_LETTERS})
    text = re.sub(r"(?<=[0-9])．(?=[0-9])", ".", text).replace("．", "。")
    text = re.sub(_ASCII_MARKS, lambda marks: marks[0].translate(_FULL_WIDTH), text)
    return re.sub(rf"(?<={_NEAR})([{_BLANKS}]*)\.([{_BLANKS}]*)(?=$|\n|{_NEAR}|[”’\"'])", r"\1。\2", text)


_BLANKS = " \t\u00a0\u3000"
_ASCII_MARKS = re.compile(rf"(?<={_NEAR})[,!?;:(){_BLANKS}]+|[,!?;:(){_BLANKS}]+(?={_NEAR})")


def _quotes(text: str) -> str:
    """ASCII quotes in Chinese text become “ ” ‘ ’ by their context; quotes of any other kind stay as they are."""
    for own, opener, closer in (('"', "“", "”"), ("'", "‘", "’")):
        text = "\n".join(_quotes_of_line(line, own, opener, closer) for line in text.split("\n"))
    return text


def _quotes_of_line(line: str, own: str, opener: str, closer: str) -> str:
    is_open, out = False, list(line)
    for at, mark in enumerate(line):
        if mark in (opener, closer):
            is_open = mark == opener
        if mark != own:
            continue
        before, after = line[:at].rstrip(_BLANKS + own), line[at:].lstrip(_BLANKS + own)
        if not (re.search(f"{_NEAR}$", before) or re.match(_NEAR, after)):
            continue
        is_first = own not in line[len(before) : at]
        is_open = (is_first and before[-1:] in ("", "：", "“", "‘")) or not is_open
        out[at] = opener if is_open else closer
    return "".join(out)


def _spaces(text: str) -> str:
    """Drop spaces next to Chinese text and at the ends of lines; keep them between Latin words."""
    text = re.sub(rf"[ \t\u00a0\u3000]+(?={_NEAR}|$|\n)", "", text)
    text = re.sub(rf"(?<={_NEAR})[ \t\u00a0\u3000]+", "", text)
    return re.sub(r"(?m)^[ \t\u00a0\u3000]+", "", text)


def _marks(text: str) -> str:
    """Doubled and odd marks: ...... → ……, -- → ——, ，， → ，, 。。 → 。 (？！ stays)."""
    text = re.sub(rf"(?<={_NEAR})(?:[…⋯]+|\.{{3,}}|(?<!。)。{{3,}})+", lambda run: "……"[: len(run[0])], text)
    text = re.sub(rf"(?<={_NEAR})(?:—+|-{{2,}})+", lambda run: "——"[: len(run[0])], text)
    return re.sub("([，。；：、])\\1+", r"\1", text)


def _blank_lines(text: str) -> str:
    """One newline between paragraphs, none at the ends."""
    return re.sub("\n{2,}", "\n", text).strip("\n")


CONTROLS = Rule("controls", _controls)
INVISIBLE = Rule("invisible", _invisible)
NEWLINES = Rule("newlines", _newlines)
CHINESE = (
    Rule("width", _width),
    Rule("quotes", _quotes),
    Rule("spaces", _spaces),
    Rule("marks", _marks),
)
BLANK_LINES = Rule("blank-lines", _blank_lines)
