"""The cleaning rules in the order they run. docs/design/cleaning.md 4.2 gives the reason for each.

Structure comes before characters and characters before spaces: a heading is recognised by its line and spaces, a note
by its brackets. Before all of these, characters.py normalises newlines, controls, Unicode and width in one pass, and
the container format of the profile is removed.
"""

from __future__ import annotations

from pipeline.clean.damage import shifted_gbk
from pipeline.clean.markup import entities
from pipeline.clean.options import CleanOptions, load_tables
from pipeline.clean.profiles import Profile
from pipeline.clean.rule import Rule
from pipeline.clean.rules import (
    boilerplate,
    footnotes,
    gaiji,
    lacunae,
    mojibake,
    notes,
    punctuation,
    quotes,
    script,
    site_ads,
    unwrap,
    variants,
    verse,
    whitespace,
)


def before_headings(profile: Profile, options: CleanOptions) -> list[Rule]:
    """Return the rules that make headings recognisable: on references, lines, brackets and unreadable characters."""
    tables = load_tables(options)
    policies = note_policies(profile, options)
    return _enabled(
        profile,
        options,
        entities.RULE,
        site_ads.rule(remove=site_ads.NAME in options.boilerplate),
        shifted_gbk.RULE,
        _unwrap_rule(profile, options),
        footnotes.rule() if policies.get(footnotes.NAME) == "drop" else None,
        gaiji.rule(options.gaiji, tables.gaiji, tables.pua),
        mojibake.rule(),
        lacunae.rule(options.lacunae),
        punctuation.WIDEN,
        None if "extract" in policies.values() else notes.rule(policies),
    )


def _unwrap_rule(profile: Profile, options: CleanOptions) -> Rule | None:
    """Return the rule that the option selects, or without it the profile."""
    is_wanted = profile.unwrap if options.unwrap is None else options.unwrap
    if is_wanted is None:
        return unwrap.UNWRAP_WHERE_CLEAR
    return (unwrap.UNWRAP if profile.unwrap else unwrap.UNWRAP_PAGES) if is_wanted else None


def note_policies(profile: Profile, options: CleanOptions) -> dict[str, str]:
    """Return the policies for notes by their brackets.

    If one of them is extract, the cleaner removes the notes itself, because it has to keep them.
    """
    return {**profile.notes, **load_tables(options).notes}


def after_headings(profile: Profile, options: CleanOptions) -> list[Rule]:
    """Return the rules that need only neighbouring characters.

    Some of the rules before headings run again after the spaces between such neighbours are gone.
    """
    tables = load_tables(options)
    patterns = [pattern for pattern in options.boilerplate if pattern != site_ads.NAME]
    return _enabled(
        profile,
        options,
        boilerplate.rule(patterns) if patterns else None,
        quotes.CURL,
        quotes.style_rule(options.quotes) if options.quotes != "keep" else None,
        whitespace.rule(options.gaps),
        site_ads.rule(remove=True) if site_ads.NAME in options.boilerplate else None,
        gaiji.rule(options.gaiji, tables.gaiji, tables.pua),
        mojibake.rule(),
        lacunae.rule(options.lacunae),
        punctuation.WIDEN,
        punctuation.COLLAPSE,
        script.rule(options.script),
        variants.rule(tables.variants) if options.variants else None,
        punctuation.rule(options.punct) if options.punct != "keep" else None,
        whitespace.rule(options.gaps) if options.punct != "keep" else None,
        verse.rule(options.verse) if profile.verse else None,
    )


def _enabled(profile: Profile, options: CleanOptions, *rules: Rule | None) -> list[Rule]:
    return [rule for rule in rules if rule and profile.chinese and rule.name not in options.without]
