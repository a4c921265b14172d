"""The rules of cleaning, in the order in which they apply. reference/cleaning.md 4.2 says why each is there.

Structure comes before characters and characters before spaces: a heading is known by the line and the spaces it stands
in, and a note by its brackets. Before these, characters.py mends newlines, controls, Unicode and width in one pass, and
the profile's container is taken off.
"""

from __future__ import annotations

from pipeline.clean.options import CleanOptions, tables_of
from pipeline.clean.profiles import Profile
from pipeline.clean.rule import Rule
from pipeline.clean.rules import (
    boilerplate,
    gaiji,
    lacunae,
    mojibake,
    notes,
    punctuation,
    quotes,
    script,
    unwrap,
    variants,
    verse,
)
from pipeline.clean.rules import punctuation as marks
from pipeline.clean.rules import whitespace as spaces


def before_headings(profile: Profile, options: CleanOptions) -> list[Rule]:
    """What may tell a heading from text, and what would stand in its way."""
    tables = tables_of(options)
    policies = notes_of(profile, options)
    unwraps = profile.unwrap if options.unwrap is None else options.unwrap
    return _chosen(
        profile,
        options,
        unwrap.RULE if unwraps else None,
        gaiji.rule(options.gaiji, tables.gaiji, tables.pua),
        mojibake.rule(),
        lacunae.rule(options.lacunae),
        marks.WIDEN,
        None if "extract" in policies.values() else notes.rule(policies),
    )


def notes_of(profile: Profile, options: CleanOptions) -> dict[str, str]:
    """The policies for notes by their brackets. Those to extract are taken out by the page itself, which keeps them."""
    return {**profile.notes, **tables_of(options).notes}


def after_headings(profile: Profile, options: CleanOptions) -> list[Rule]:
    """What needs only the characters beside it. Where spaces stood between these, the rules before look once more."""
    tables = tables_of(options)
    return _chosen(
        profile,
        options,
        boilerplate.rule(options.boilerplate) if options.boilerplate else None,
        quotes.RULE,
        quotes.style(options.quotes) if options.quotes != "keep" else None,
        spaces.RULE,
        gaiji.rule(options.gaiji, tables.gaiji, tables.pua),
        mojibake.rule(),
        lacunae.rule(options.lacunae),
        marks.WIDEN,
        marks.ONCE,
        script.rule(options.script),
        variants.rule(tables.variants) if options.variants else None,
        punctuation.rule(options.punct) if options.punct != "keep" else None,
        spaces.RULE if options.punct != "keep" else None,
        verse.rule(options.verse) if profile.verse else None,
    )


def _chosen(profile: Profile, options: CleanOptions, *rules: Rule | None) -> list[Rule]:
    return [rule for rule in rules if rule and profile.chinese and rule.name not in options.without]
