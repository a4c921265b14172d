"""Profiles: kinds of sources, and the rules that each of them needs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.clean import han_rich
from pipeline.clean.chat.formats import KINDS
from pipeline.clean.markup import detect as markup
from pipeline.clean.markup import entities
from pipeline.clean.markup.parsed import Parsed
from pipeline.clean.rule import Counts
from pipeline.clean.rules import notes


@dataclass(frozen=True)
class Profile:
    """A kind of source.

    chinese     if False, only line ends and control characters are normalised
    headings    cut texts at chapter headings
    unwrap      join hard-wrapped lines; None: those of documents that are clearly hard-wrapped
    verse       look for verse in prose
    container   parser that takes a complete text out of its markup
    notes       policies for the brackets of this source
    unit        text that becomes a document, if the option `unit` has its default
    """

    name: str
    chinese: bool = True
    headings: bool = True
    unwrap: bool | None = None
    verse: bool = True
    container: Callable[[str, Counts], Parsed] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    unit: str = "chapter"

    def unit_of(self, option: str) -> str:
        """Return the text that becomes a document, where the option `unit` is `option`."""
        return self.unit if option == "chapter" else option


HEAD_CHARACTERS = 100_000  # of a text file, from which its profile is detected
TEXT = "text"  # any text that is not Chinese
ALIASES = {"pile": TEXT}
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("plain"),
        Profile("chinese-poetry", headings=False, unwrap=False, verse=False, notes=notes.POETRY_POLICIES),
        Profile("kanripo", unwrap=True, container=markup.kanripo, notes=notes.KANRIPO_POLICIES),
        Profile("daizhige", container=markup.daizhige, notes=notes.DAIZHIGE_POLICIES),
        Profile("wikitext-lite", container=markup.wikitext_lite),
        Profile("org", container=markup.org),
        Profile("html", container=markup.html),
        Profile("markdown", container=markup.markdown),
        Profile("cbeta", container=markup.cbeta),
        Profile("poems", headings=False, unwrap=False, verse=False, unit="paragraph"),
        Profile("chat-log", headings=False, unwrap=False, verse=False, container=markup.chat_log),
        Profile(f"chat-log-{TEXT}", chinese=False, headings=False, container=markup.chat_log),
        Profile(TEXT, chinese=False, headings=False),
        *(Profile(kind, chinese=False, headings=False) for kind in KINDS),
    )
}


_POEMS = re.compile(r"\.json(\.(zst|gz|bz2|xz))?$", re.IGNORECASE)


def for_records(profile: str, file_name: str) -> str:
    """Return the name of the profile for the Chinese documents of a file with many documents.

    With "auto", all other documents of the file have the profile `TEXT`.
    """
    if profile != "auto":
        return profile
    return "chinese-poetry" if _POEMS.search(file_name) else "plain"


def for_text(profile: str, head: str) -> str:
    """Return the name of the profile for a text file that begins with `head`.

    With "auto", the script of the complete head decides, after its markup is removed, so that a short preface in
    another language has no influence. If no text is left, the markup alone decides.
    """
    if profile != "auto":
        return profile
    detected = markup.detect(head)
    container = PROFILES[detected].container
    body = entities.unescape(container(head, Counter()).text if container else head, Counter())
    if container and not han_rich.has_letters(body):
        return detected
    if han_rich.is_han_rich(body):
        return detected
    name = f"{detected}-{TEXT}"
    return name if name in PROFILES else TEXT
