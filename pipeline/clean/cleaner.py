"""One page through all rules: texts in, documents out, and of every rule what it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.clean.markup.detect import Parsed
from pipeline.clean.options import CleanOptions
from pipeline.clean.profiles import Profile
from pipeline.clean.rule import Effect, Rule
from pipeline.clean.rules import characters, headings, notes
from pipeline.clean.rules import order as rules
from pipeline.clean.rules import whitespace as layout
from pipeline.clean.rules import whitespace as spaces
from pipeline.clean.utf16 import UNITS, Codes, codes, join, plain, split
from pipeline.clean.utf16 import characters as count

Watch = Callable[[str, Codes, Codes], None]  # the name of a rule, and the page before and after it


@dataclass
class Page:
    """Cleaned documents, parted by NUL in `array`. `origin` is the text that each is from, by its number, `titles`
    are those of headings ("" for none). `parsed` is what a container said of each text."""

    array: Codes
    origin: np.ndarray
    titles: list[str]
    effects: dict[str, Effect]
    came: int = 0  # characters of the texts
    size: int = 0  # and of the page now
    numbers: list[tuple[str, int]] = field(default_factory=list)
    unheaded: int = 0  # lines without a heading, where headings stand on the lines of their chapters
    parsed: list[Parsed] = field(default_factory=list)
    notes: dict[int, list[str]] = field(default_factory=dict)  # that were extracted, by the number of their text


class Cleaner:
    """The rules that a profile and the options choose, ready for any number of pages."""

    def __init__(self, profile: Profile, options: CleanOptions, watch: Watch | None = None) -> None:
        self._profile, self._options, self._watch = profile, options, watch
        self._before = rules.before_headings(profile, options)
        self._after = rules.after_headings(profile, options)
        self._notes = rules.notes_of(profile, options)

    def clean(self, texts: Sequence[str]) -> Page:
        return self.clean_page(join(texts), len(texts), sum(map(len, texts)))

    def clean_page(self, array: Codes, count: int, came: int) -> Page:
        """The same for texts that were joined: how many there are, and characters of them with those of NUL."""
        page = Page(array, np.arange(count), [""] * count, {}, came)
        self._characters(page)
        if self._profile.container:
            self._container(page)
        present = _present(page.array) if self._before or self._after else np.ones(UNITS, bool)
        self._apply(page, self._before, present)
        if "extract" in self._notes.values():
            self._extract(page)
        if self._profile.headings:
            self._headings(page)
        self._apply(page, self._after, present)
        if self._profile.chinese:
            self._divide(page)
        return page

    def _become(self, page: Page, name: str, array: Codes) -> None:
        """Count what a rule did, and let the page be what it gave."""
        if array is page.array:
            return
        size = count(array)
        page.effects[name].differ(page.size, size)
        if self._watch:
            self._watch(name, page.array, array)
        page.array, page.size = array, size

    def _characters(self, page: Page) -> None:
        """Mend single characters."""
        before = page.array
        page.array, effects = characters.normalise(before, chinese=self._profile.chinese)
        page.effects.update(effects)
        page.size = count(page.array)
        changed = sum(each.removed - each.added for each in effects.values())
        effects["controls"].removed += page.came - changed - page.size  # NUL, which no page holds
        if self._watch and page.array is not before:
            for name, effect in effects.items():
                if effect.seen:
                    self._watch(name, before, page.array)

    def _container(self, page: Page) -> None:
        effect = page.effects.setdefault("container", Effect())
        assert self._profile.container
        page.parsed = [self._profile.container(text, effect.seen) for text in split(page.array)]
        self._become(page, "container", join([each.text for each in page.parsed]))

    def _apply(self, page: Page, chosen: Sequence[Rule], present: np.ndarray) -> None:
        """Run the rules that have work. Those that look once more have it where spaces stood inside of lines."""
        torn = False
        for rule in chosen:
            again = rule.name in page.effects and rule is not spaces.RULE
            effect = page.effects.setdefault(rule.name, Effect())
            if again and not torn:
                continue
            if rule.triggers and not present[rule.table].any():
                continue
            self._become(page, rule.name, rule.apply(page.array, effect.seen))
            present[codes(rule.makes).units] = True
            if rule is spaces.RULE and effect.seen[spaces.INSIDE]:
                torn = True
                present[:] = _present(page.array)

    def _extract(self, page: Page) -> None:
        """Take notes out of each document, to be kept beside it. Before headings a document is a text."""
        effect, left = page.effects.setdefault("notes", Effect()), []
        for number, text in enumerate(split(page.array)):
            text, found = notes.extract(text, self._notes)
            left.append(text)
            if found:
                page.notes[number] = [note.text for note in found]
                effect.seen["extracted"] += len(found)
        self._become(page, "notes", join(left))

    def _headings(self, page: Page) -> None:
        policy = self._options.headings
        if policy == "boundary" and self._options.unit == "document":
            policy = "drop"
        found = headings.cut(page.array, policy)
        page.numbers, page.origin = found.numbers, page.origin[found.origin]
        page.unheaded = found.unheaded
        page.titles = [found.titles.get(number, "") for number in range(len(page.origin))]
        page.effects.setdefault("headings", Effect())
        self._become(page, "headings", found.array)

    def _divide(self, page: Page) -> None:
        options = self._options
        array, origin = layout.divide(page.array, options.unit, inside_quotes=options.split == "flat")
        page.origin = page.origin[origin]
        page.titles = [page.titles[number] for number in origin]
        page.effects.setdefault("blank-lines", Effect())
        self._become(page, "blank-lines", array)


def _present(text: Codes) -> np.ndarray:
    """Which units there may be in a text: its odd ones, and all plain ones."""
    present = plain().copy()
    present[text.odd_units] = True
    return present
