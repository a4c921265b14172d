"""Character references of HTML in any text: `&nbsp;`, `&#8220;`, `&amp;lt;` become the characters they stand for.

The rule runs before those that widen marks: `&nbsp；` is not a reference. Names that HTML does not know, such as the
gaiji `&KR0869;`, stay.
"""

from __future__ import annotations

import html
import re
import string
from html.entities import html5

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import ANY, Counts, textual, units
from pipeline.clean.rules import characters
from pipeline.clean.utf16 import Utf16Text, decode_utf16, encode_utf16, is_one_of, positions_of, units_at

_MAX_NESTED = 8  # references whose characters form other references
_MIN_NAME, _MAX_NAME = 2, 10  # units of a reference, without ; and with & and ;
_NAME = string.ascii_letters + string.digits + "#"
_BARE = "nbsp|lt|gt|amp|quot"  # names that are read without their semicolon too
_WIDE_SPACES = "\u2001\u2002\u2003"  # &emsp; and &ensp;, with which paragraphs are indented
_AFTER_TAG_START = string.ascii_letters + "/!?#"
_REFERENCE = lazy_pattern(
    rf"""&(?P<again>(?:(?:amp|\#38|\#x26)[;；])*)
    (?: (?P<name>\#[0-9]{{1,7}}|\#[xX][0-9a-fA-F]{{1,6}}|[A-Za-z][A-Za-z0-9]{{1,31}})[;；]
      | (?P<bare>{_BARE})(?![A-Za-z0-9=]) )""",
    re.VERBOSE,
)


def unescape(text: str, counts: Counts) -> str:
    """Return the text with the characters that its references stand for, and count them by name."""

    def character(match: re.Match[str]) -> str:
        name = match["name"] or match["bare"]
        value = html.unescape(f"&{name};") if name[0] == "#" else _named(name)
        if value is None:
            return f"&{match[0][1 + len(match['again']) :]}"
        counts[f"&{name};"] += 1
        return "\u3000" if value in _WIDE_SPACES else value

    original = text
    for _ in range(_MAX_NESTED):
        previous, text = text, _REFERENCE.sub(character, text) if "&" in text else text
        if text == previous:
            break
    return text if text == original else decode_utf16(characters.normalise(encode_utf16(text))[0])


def count_tags(page: Utf16Text) -> int:
    """Count what looks like a tag, a comment or a reference of HTML: not AT&T, nor R&D."""
    starts = positions_of(page, "<&")
    if not len(starts):
        return 0
    is_tag = page.units[starts] == ord("<")
    is_tag &= is_one_of(units_at(page, starts + 1), _AFTER_TAG_START)
    is_name = page.units[starts] == ord("&")
    for offset in range(1, _MAX_NAME):
        following = units_at(page, starts + offset)
        is_tag |= is_name & is_one_of(following, ";；") if offset > _MIN_NAME else False
        is_name &= is_one_of(following, _NAME)
    return int(is_tag.sum())


def _named(name: str) -> str | None:
    return html5.get(f"{name};") or html5.get(f"{name.lower()};")


RULE = textual("entities", unescape, units("&"), produces=ANY)
