"""Profiles: kinds of sources, and the rules that each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.clean.markup import detect as markup
from pipeline.clean.markup.parsed import Parsed
from pipeline.clean.rule import Counts
from pipeline.clean.rules import notes
from pipeline.readers.encoding import han_ratio

_MIN_HAN = 0.5  # fraction of Han over which JSON lines and table rows are cleaned as Chinese


@dataclass(frozen=True)
class Profile:
    """A kind of source.

    chinese     if False, only line ends and control characters are normalised
    headings    cut texts at chapter headings
    unwrap      join hard-wrapped lines
    verse       look for verse in prose
    container   parser that takes a complete text out of its markup
    notes       policies for the brackets of this source
    """

    name: str
    chinese: bool = True
    headings: bool = True
    unwrap: bool = False
    verse: bool = True
    container: Callable[[str, Counts], Parsed] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("plain"),
        Profile("chinese-poetry", headings=False, verse=False, notes=notes.POETRY_POLICIES),
        Profile("kanripo", unwrap=True, container=markup.kanripo, notes=notes.KANRIPO_POLICIES),
        Profile("daizhige", container=markup.daizhige, notes=notes.DAIZHIGE_POLICIES),
        Profile("wikitext-lite", container=markup.wikitext_lite),
        Profile("org", container=markup.org),
        Profile("pile", chinese=False, headings=False),
    )
}


def resolve(profile: str, file_name: str, head: str) -> Profile:
    """Return the profile of that name, or for "auto" the one for a file with this name and this beginning."""
    if profile != "auto":
        return PROFILES[profile]
    suffix = file_name.removesuffix(".zst").removesuffix(".gz").rpartition(".")[2]
    if suffix in ("jsonl", "parquet"):
        return PROFILES["plain" if han_ratio(head) > _MIN_HAN else "pile"]
    return PROFILES["chinese-poetry" if suffix == "json" else markup.detect(head)]
