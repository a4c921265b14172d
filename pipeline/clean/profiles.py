"""Profiles: what kind of source a text is from, and so which rules it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.clean.markup import detect as containers
from pipeline.clean.markup.detect import Parsed
from pipeline.clean.rule import Seen
from pipeline.clean.rules import notes
from pipeline.readers.encoding import share_of_han

_MOSTLY = 0.5  # share of Han: documents in JSON lines or rows are Chinese then, and of the Pile otherwise


@dataclass(frozen=True)
class Profile:
    """`container` takes a whole document out of its markup. Where `chinese` is false only newlines and controls are
    mended, and nothing else is touched. `verse`: whether to look for verse among prose. `notes` are the policies for
    brackets that this source needs.
    """

    name: str
    chinese: bool = True
    headings: bool = True
    unwrap: bool = False
    verse: bool = True
    container: Callable[[str, Seen], Parsed] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("plain"),
        Profile("chinese-poetry", headings=False, verse=False, notes=notes.POETRY),
        Profile("kanripo", unwrap=True, container=containers.kanripo, notes=notes.KANRIPO),
        Profile("daizhige", container=containers.daizhige, notes=notes.DAIZHIGE),
        Profile("wikitext-lite", container=containers.wikitext_lite),
        Profile("org", container=containers.org),
        Profile("pile", chinese=False, headings=False),
    )
}


def of(name: str, head: str, asked: str) -> Profile:
    """The profile that is asked for, or with "auto" the one that fits a file's name and how its text begins."""
    if asked != "auto":
        return PROFILES[asked]
    suffix = name.removesuffix(".zst").removesuffix(".gz").rpartition(".")[2]
    if suffix in ("jsonl", "parquet"):
        return PROFILES["plain" if share_of_han(head) > _MOSTLY else "pile"]
    return PROFILES["chinese-poetry" if suffix == "json" else containers.detect(head)]
