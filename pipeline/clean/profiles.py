"""Profiles: what a kind of source needs, and the one function that applies it to a document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.clean import headings, sentences
from pipeline.clean.rules import BLANK_LINES, CHINESE, CONTROLS, INVISIBLE, NEWLINES, Rule
from pipeline.errors import BadConfig
from pipeline.ledger import Ledger

UNITS = ("chapter", "paragraph", "sentence", "document")


@dataclass(frozen=True)
class Profile:
    """`characters` apply to the whole text, `body` to each section after the headings were taken out.

    Newlines come before headings and spaces after: a heading is known by the line and the spaces it stands in.
    """

    name: str
    headings: bool
    chinese: bool
    characters: tuple[Rule, ...]
    body: tuple[Rule, ...]


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("plain", headings=True, chinese=True, characters=(CONTROLS, INVISIBLE, NEWLINES), body=CHINESE),
        Profile(
            "chinese-poetry", headings=False, chinese=True, characters=(CONTROLS, INVISIBLE, NEWLINES), body=CHINESE
        ),
        Profile("pile", headings=False, chinese=False, characters=(CONTROLS, NEWLINES), body=()),
    )
}


def for_file(name: str, asked: str) -> Profile:
    """The profile named `asked`, or with "auto" the one that fits the file's name."""
    if asked == "auto":
        suffix = name.removesuffix(".zst").removesuffix(".gz").rpartition(".")[2]
        asked = {"jsonl": "pile", "json": "chinese-poetry"}.get(suffix, "plain")
    if asked not in PROFILES:
        raise BadConfig(f"no profile {asked!r}", hint=f"profiles: auto, {', '.join(PROFILES)}")
    return PROFILES[asked]


@dataclass(frozen=True)
class Cleaned:
    """One unit of cleaned text under its title; `headings` counts those that were taken out just before it or in it."""

    title: str
    text: str
    headings: int = 0


def apply(profile: Profile, text: str, title: str, unit: str, ledger: Ledger) -> Iterator[Cleaned]:
    """The cleaned units of one document; every character that did not make it is in `ledger` under its reason.

    `unit` is one of UNITS and matters to Chinese profiles only: a Pile document stays one document.
    """
    text = _run(profile.characters, text, ledger)
    if not profile.chinese:
        yield Cleaned(title, text)
        return
    parts = headings.sections(text) if profile.headings else [headings.Section(title, text, 0, False)]
    ledger.characters.drop("headings", sum(part.removed for part in parts))
    bodies = [_run(profile.body, part.text, ledger) for part in parts]
    if unit == "document":
        whole = _run((BLANK_LINES,), "\n".join(bodies), ledger)
        yield Cleaned(title, whole, sum(part.headed for part in parts))
        return
    ledger.characters.drop("newlines", len(parts) - 1)  # those that stood between two sections
    found = 0
    for part, body in zip(parts, bodies, strict=True):
        found += part.headed
        for piece in _pieces(body, unit, ledger):
            yield Cleaned(part.title or title, piece, found)
            found = 0


def _run(rules: tuple[Rule, ...], text: str, ledger: Ledger) -> str:
    for rule in rules:
        before = len(text)
        text = rule.apply(text)
        ledger.characters.drop(rule.name, before - len(text))
    return text


def _pieces(body: str, unit: str, ledger: Ledger) -> list[str]:
    """A section cut into units. Paragraphs are parted by blank lines, or by every newline where there are none."""
    if unit == "paragraph" and "\n\n" in (trimmed := body.strip("\n")):
        gaps = sum(len(gap) for gap in re.findall("\n{2,}", trimmed))
        ledger.characters.drop("blank-lines", gaps + len(body) - len(trimmed))
        return re.split("\n{2,}", trimmed)
    body = _run((BLANK_LINES,), body, ledger)
    if unit == "chapter":
        return [body]
    ledger.characters.drop("newlines", body.count("\n"))
    return sentences.split(body) if unit == "sentence" else body.split("\n")
