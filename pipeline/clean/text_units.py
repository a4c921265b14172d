r"""Paragraphs and sentences of text that is not Chinese, as documents.

A paragraph is the text between blank lines, or a line in a text without blank lines. White space at its ends is
removed, line ends inside it stay.

A sentence is part of a paragraph. It ends after . ! ? … ؟ । and the quotes and brackets that close there, if white
space follows and the next word does not begin in lower case; or after 。！？ and what closes there. A single . does not
end a sentence after a title (`Mr.`), after a single letter other than I (`J. R. Smith`, `e.g.`), after the number that
begins it (`2. Second`), and before a number after `No.`, `p.`, `vol.` and the like.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np

from pipeline.clean.utf16 import Utf16Text, join_documents, split_documents

UNITS = ("paragraph", "sentence")  # into which a text is divided; with the other units it stays whole
_BLANK_LINE = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(
    r"""([.!?…؟।]+) ["'”’“‘»›«‹)\]}]* (\s+) | [。！？]++ [”’」』）》〉】〕〗"')]*+ (?![，、；：]) \s*""", re.VERBOSE
)
_OPENERS = "\"'“‘«‹([{¿¡—–-*_"
_WORD = re.compile(r"[^\W\d_]+$")
_MAX_WORD = 16  # characters that are searched for the word before a full stop
_TITLES = {
    *("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "rev", "hon", "capt", "col", "gen", "lt", "sgt", "maj", "adm"),
    *("gov", "sen", "rep", "messrs", "mme", "mlle", "mgr", "vs", "cf", "viz"),
}
_BEFORE_NUMBERS = {"no", "nos", "nr", "p", "pp", "vol", "vols", "fig", "figs", "ch", "chap", "sec", "art", "ca", "op"}


def split_text(page: Utf16Text, unit: str) -> tuple[Utf16Text, np.ndarray]:
    """Split the documents of a page into paragraphs or sentences.

    Returns the page, and for each of its documents the index of the old document that it is part of. A document without
    text stays, as an empty one.
    """
    parts, origin = list[str](), list[int]()
    for index, text in enumerate(split_documents(page)):
        pieces = paragraphs(text)
        if unit == "sentence":
            pieces = [sentence for paragraph in pieces for sentence in sentences(paragraph)]
        parts += pieces or [""]
        origin += [index] * max(len(pieces), 1)
    return join_documents(parts), np.array(origin, int)


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text."""
    pieces = _BLANK_LINE.split(text) if _BLANK_LINE.search(text.strip()) else text.split("\n")
    return [stripped for piece in pieces if (stripped := piece.strip())]


def sentences(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph."""
    bounds = [0, *_sentence_starts(paragraph), len(paragraph)]
    pieces = [paragraph[start:end].strip() for start, end in itertools.pairwise(bounds)]
    return [piece for piece in pieces if piece]


def _sentence_starts(text: str) -> Iterator[int]:
    """Yield the start of each sentence but the first."""
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if not match[1] or _ends_sentence(text, start, match):
            start = match.end()
            yield start


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    """Return True if the mark of a match ends the sentence that begins at `start`."""
    following = text[match.end() : match.end() + _MAX_WORD].lstrip(_OPENERS)[:1]
    if following.islower():
        return False
    if match[1] != "." or match.start(2) > match.end(1):  # a quote or bracket closes after it
        return True
    if text[start : match.start()].strip().isdigit():
        return False
    word = _WORD.search(text, max(start, match.start() - _MAX_WORD), match.start())
    if not word:
        return True
    name = word[0].lower()
    if name in _BEFORE_NUMBERS and following.isdigit():
        return False
    is_initial = len(name) == 1 and name != name.upper() and word[0] != "I"
    return name not in _TITLES and not is_initial
