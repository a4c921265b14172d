"""Boilerplate: what a genre, a printer or a site puts into every text. Which sentences those are, the user says.

A pattern is a regular expression that is sought within a line. A line of which nothing is left goes with its newline.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pipeline.clean.rule import Rule, Seen, textual, units
from pipeline.clean.utf16 import SEPARATOR
from pipeline.errors import BadConfig

# 且听下回分解 and its variants, with the question before them: 毕竟…何人，且听下回分解。 It is one set of characters
# that a match begins with, since that is what makes it fast to find; what they begin is asked behind them.
_FORMULA = "(?:[听聽看]下|下[听聽看])[回文]分[解说說]"
_ASKS = "(?<![^。！？”」』…].)(?:(?<=[毕畢究])竟|(?<=[欲要不未])知|(?<=正)不知)"  # at the head of a sentence
_CHAPTER_ENDS = (
    "[毕畢究欲要不未正，；且再请請](?:"
    f"{_ASKS}(?:(?![毕畢]竟)[^。！“”「」]){{0,80}}[，？；][且再请請]{_FORMULA}[。！？]?"
    f"|(?<=[，；])[且再请請]{_FORMULA}(?=[。！？])"  # the question is not the whole sentence: it stays
    f"|(?<=[且再请請]){_FORMULA}[。！？]?)"
)
PRESETS: Mapping[str, str] = MappingProxyType({"chapter-ends": _CHAPTER_ENDS})
Patterns = Sequence[tuple[str, re.Pattern[str]]]  # and under which names they are counted
_OF_PRESETS = ("分解", "分说", "分說")  # one of which is in all that the presets match


def rule(patterns: Sequence[str]) -> Rule:
    """Takes out what `patterns` match, each a name of PRESETS or a regular expression. A bad one: BadConfig."""
    compiled = [(pattern, _compiled(PRESETS.get(pattern, pattern))) for pattern in dict.fromkeys(patterns)]
    only_presets = all(pattern in PRESETS for pattern in patterns)
    needed = _OF_PRESETS if only_presets else ("",)

    def apply(text: str, seen: Seen) -> str:
        if not any(word in text for word in needed):
            return text
        left = SEPARATOR.join([_document(document, compiled, needed, seen) for document in text.split(SEPARATOR)])
        if len(left) < len(text):
            seen["characters of boilerplate"] += len(text) - len(left)
        return left

    return textual("boilerplate", apply, units("分") if only_presets else ())


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        pattern.encode()
        compiled = re.compile(pattern)
    except (re.error, UnicodeEncodeError, RecursionError) as error:
        raise BadConfig(f"--boilerplate {pattern!r}: {error}", hint="write a regular expression of Python") from error
    if compiled.search(""):
        raise BadConfig(
            f"--boilerplate {pattern!r} also matches where there is nothing", hint="say what has to be there"
        )
    return compiled


def _document(text: str, patterns: Patterns, needed: Sequence[str], seen: Seen) -> str:
    if not any(word in text for word in needed):
        return text
    kept = []
    for line in text.split("\n"):
        left = _line(line, patterns, seen) if any(word in line for word in needed) else line
        if left or not line:
            kept.append(left)
    return "\n".join(kept)


def _line(line: str, patterns: Patterns, seen: Seen) -> str:
    """The line without what the patterns match, nor what they match in what is left then."""
    before = ""
    while line != before:
        before = line
        for name, pattern in patterns:
            line = pattern.sub(lambda hit, name=name: _gone(hit, name, seen), line)  # type: ignore[misc]
    return line


def _gone(hit: re.Match[str], name: str, seen: Seen) -> str:
    seen[name] += bool(hit[0])
    return ""
