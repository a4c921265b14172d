"""The cleaner: passes a page of texts through all rules and returns documents, with the effects of each rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.clean import text_units
from pipeline.clean.markup.parsed import Parsed
from pipeline.clean.options import CleanOptions
from pipeline.clean.profiles import Profile
from pipeline.clean.rule import ANY, Effect, Rule, compile_pattern
from pipeline.clean.rules import characters, headings, notes, order, series, whitespace
from pipeline.clean.utf16 import (
    UNIT_COUNT,
    Utf16Text,
    common_units,
    count_characters,
    encode_utf16,
    join_documents,
    split_documents,
)

Watch = Callable[[str, Utf16Text, Utf16Text], None]  # called with the name of a rule, and the page before and after it


@dataclass
class Page:
    """Texts on their way through the rules; at the end, cleaned documents.

    array            the documents, joined by NUL
    origin           for each document, the index of its text
    titles           for each document, its heading or ""
    effects          of each rule, by name, in the order of the rules
    input_size       code points of the texts
    size             code points of the page at present
    chapter_numbers  (pattern, number) of each chapter heading
    unheaded         lines without a heading, in texts where each chapter is a line that begins with its heading
    missed           numbers that rise like those of chapters and are part of no heading
    matches          number of headings by pattern of the user
    parsed           for each text, the result of its markup parser
    notes            extracted notes, by the index of their text
    turns            fields with the messages of a conversation, by the index of its first text
    """

    array: Utf16Text
    origin: np.ndarray
    titles: list[str]
    effects: dict[str, Effect]
    input_size: int = 0
    size: int = 0
    chapter_numbers: list[tuple[str, int]] = field(default_factory=list)
    unheaded: int = 0
    missed: list[series.MissedNumber] = field(default_factory=list)
    matches: Mapping[str, int] = field(default_factory=dict)
    parsed: list[Parsed] = field(default_factory=list)
    notes: dict[int, list[str]] = field(default_factory=dict)
    turns: dict[int, bytes] = field(default_factory=dict)


class Cleaner:
    """The rules that a profile and the options select. They can clean any number of pages.

    `watch` is called after each rule that changed the page.
    """

    def __init__(self, profile: Profile, options: CleanOptions, watch: Watch | None = None) -> None:
        self._profile, self._options, self._watch = profile, options, watch
        self._unit = profile.unit_of(options.unit)
        self._before_headings = order.before_headings(profile, options)
        self._after_headings = order.after_headings(profile, options)
        self._note_policies = order.note_policies(profile, options)
        self._heading_patterns = [compile_pattern("--heading", pattern) for pattern in options.heading]

    def clean(self, texts: Sequence[str], titles: Sequence[str] = ()) -> Page:
        """Clean texts."""
        return self.clean_page(join_documents(texts), len(texts), sum(map(len, texts)), titles)

    def clean_page(self, array: Utf16Text, count: int, size: int, titles: Sequence[str] = ()) -> Page:
        """Clean `count` texts that are already joined. `titles` are their titles before cleaning.

        `size` is the number of their code points, including NULs that were removed when they were joined.
        """
        page = Page(array, np.arange(count), [""] * count, {}, size)
        self._normalise_characters(page)
        if self._profile.container:
            self._parse_markup(page)
        has_rules = self._before_headings or self._after_headings
        present = _units_present(page.array) if has_rules else np.ones(UNIT_COUNT, bool)
        self._apply(page, self._before_headings, present)
        if "extract" in self._note_policies.values():
            self._extract_notes(page)
        if self._profile.headings:
            self._cut_at_headings(page, titles)
        self._apply(page, self._after_headings, present)
        if self._profile.chinese or self._unit in text_units.UNITS:
            self._divide_into_units(page)
        return page

    def _update(self, page: Page, rule: str, array: Utf16Text) -> None:
        """Replace the content of the page by the result of a rule, and count the difference."""
        if array is page.array:
            return
        size = count_characters(array)
        page.effects[rule].count_change(page.size, size)
        if self._watch:
            self._watch(rule, page.array, array)
        page.array, page.size = array, size

    def _normalise_characters(self, page: Page) -> None:
        before = page.array
        page.array, effects = characters.normalise(before, chinese=self._profile.chinese)
        page.effects.update(effects)
        page.size = count_characters(page.array)
        removed = sum(effect.removed - effect.added for effect in effects.values())
        effects["controls"].removed += page.input_size - removed - page.size  # NULs that `join_documents` removed
        if self._watch and page.array is not before:
            for name, effect in effects.items():
                if effect.counts:
                    self._watch(name, before, page.array)

    def _parse_markup(self, page: Page) -> None:
        effect = page.effects.setdefault("container", Effect())
        assert self._profile.container
        page.parsed = [self._profile.container(text, effect.counts) for text in split_documents(page.array)]
        self._update(page, "container", join_documents([parsed.text for parsed in page.parsed]))

    def _apply(self, page: Page, rules: Sequence[Rule], present: np.ndarray) -> None:
        """Run the rules that have a trigger among the units `present`, a mask over all units.

        Some rules are listed twice. They run a second time only if spaces inside lines were removed in between.
        """
        spaces_removed = False
        for rule in rules:
            is_repeated = rule.name in page.effects and rule.name != whitespace.DELETE_SPACES.name
            effect = page.effects.setdefault(rule.name, Effect())
            if is_repeated and not spaces_removed:
                continue
            if rule.triggers and not present[rule.trigger_table].any():
                continue
            self._update(page, rule.name, rule.apply(page.array, effect.counts))
            if rule.produces is ANY:
                present[:] = _units_present(page.array)
            else:
                present[encode_utf16(rule.produces).units] = True
            if rule.name == whitespace.DELETE_SPACES.name and effect.counts[whitespace.INSIDE_LINES]:
                spaces_removed = True
                present[:] = _units_present(page.array)

    def _extract_notes(self, page: Page) -> None:
        """Move notes out of each text. This runs before headings, while each document is still a complete text."""
        effect, texts = page.effects.setdefault("notes", Effect()), []
        for index, text in enumerate(split_documents(page.array)):
            text, extracted = notes.extract(text, self._note_policies)
            texts.append(text)
            if extracted:
                page.notes[index] = [note.text for note in extracted]
                effect.counts["extracted"] += len(extracted)
        self._update(page, "notes", join_documents(texts))

    def _cut_at_headings(self, page: Page, titles: Sequence[str]) -> None:
        policy = self._options.headings
        if policy == "boundary" and self._options.unit == "document":
            policy = "drop"
        sections = headings.split_at_headings(page.array, policy, self._heading_patterns, titles)
        page.chapter_numbers, page.origin = sections.numbers, page.origin[sections.origin]
        page.unheaded, page.missed, page.matches = sections.lines_without_heading, sections.missed, sections.matches
        page.titles = [sections.titles.get(index, "") for index in range(len(page.origin))]
        page.effects.setdefault("headings", Effect())
        self._update(page, "headings", sections.page)

    def _divide_into_units(self, page: Page) -> None:
        if self._profile.chinese:
            inside_quotes = self._options.split == "flat"
            array, origin = whitespace.split_documents(page.array, self._unit, inside_quotes=inside_quotes)
        else:
            array, origin = text_units.split_text(page.array, self._unit)
        page.origin = page.origin[origin]
        page.titles = [page.titles[index] for index in origin]
        page.effects.setdefault("blank-lines", Effect())
        self._update(page, "blank-lines", array)


def _units_present(text: Utf16Text) -> np.ndarray:
    """Return a mask over all units: True for the special ones of a text and for all common ones."""
    present = common_units().copy()
    present[text.special_units] = True
    return present
