"""Boilerplate: text that a genre, a printer or a website adds to every document. The user chooses the patterns.

A pattern is a regular expression that is matched within a line. A line that becomes empty is removed with its newline.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pipeline.clean.rule import Counts, Rule, compile_pattern, textual, units
from pipeline.clean.utf16 import SEPARATOR

# 且听下回分解 and its variants, with the question before them: 毕竟…何人，且听下回分解。 The pattern starts with one
# character set because `re` finds that fast; the lookbehinds then check the word that the character belongs to.
_FORMULA = "(?:[听聽看]下|下[听聽看])[回文]分[解说說]"
_QUESTION_START = "(?<![^。！？”」』…].)(?:(?<=[毕畢究])竟|(?<=[欲要不未])知|(?<=正)不知)"  # at the start of a sentence
_CHAPTER_ENDS = (
    "[毕畢究欲要不未正，；且再请請](?:"
    f"{_QUESTION_START}(?:(?![毕畢]竟)[^。！“”「」]){{0,80}}[，？；][且再请請]{_FORMULA}[。！？]?"
    f"|(?<=[，；])[且再请請]{_FORMULA}(?=[。！？])"  # the sentence is more than the question: keep its start
    f"|(?<=[且再请請]){_FORMULA}[。！？]?)"
)
PRESETS: Mapping[str, str] = MappingProxyType({"chapter-ends": _CHAPTER_ENDS})
_PRESET_WORDS = ("分解", "分说", "分說")  # every match of a preset contains one of these
NamedPatterns = Sequence[tuple[str, re.Pattern[str]]]  # the name is the key under which matches are counted


def rule(patterns: Sequence[str]) -> Rule:
    """Return the rule that removes matches of `patterns`, each a name in PRESETS or a regular expression.

    Raises BadConfig for an invalid pattern and for one that matches the empty string.
    """
    compiled = [
        (pattern, compile_pattern("--boilerplate", PRESETS.get(pattern, pattern)))
        for pattern in dict.fromkeys(patterns)
    ]
    only_presets = all(pattern in PRESETS for pattern in patterns)
    required_words = _PRESET_WORDS if only_presets else ("",)

    def apply(text: str, counts: Counts) -> str:
        if not any(word in text for word in required_words):
            return text
        documents = [_clean_document(document, compiled, required_words, counts) for document in text.split(SEPARATOR)]
        cleaned = SEPARATOR.join(documents)
        if len(cleaned) < len(text):
            counts["characters of boilerplate"] += len(text) - len(cleaned)
        return cleaned

    return textual("boilerplate", apply, units("分") if only_presets else ())


def _clean_document(text: str, patterns: NamedPatterns, required_words: Sequence[str], counts: Counts) -> str:
    if not any(word in text for word in required_words):
        return text
    lines = []
    for line in text.split("\n"):
        cleaned = _clean_line(line, patterns, counts) if any(word in line for word in required_words) else line
        if cleaned or not line:
            lines.append(cleaned)
    return "\n".join(lines)


def _clean_line(line: str, patterns: NamedPatterns, counts: Counts) -> str:
    """Remove matches until none is left: removing one may join the parts of another."""
    previous = ""
    while line != previous:
        previous = line
        for name, pattern in patterns:
            line = pattern.sub(lambda match, name=name: _count(match, name, counts), line)  # type: ignore[misc]
    return line


def _count(match: re.Match[str], name: str, counts: Counts) -> str:
    counts[name] += bool(match[0])
    return ""
