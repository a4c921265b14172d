"""What a person can choose about cleaning. All but `max_bad` decides bytes, and so is in the key of the corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pipeline.clean import profiles
from pipeline.clean.rules import boilerplate, gaiji, lacunae, notes, punctuation, script, variants, verse
from pipeline.errors import BadConfig
from pipeline.runtime.ledger import DEFAULT_MAX_BAD

MAX_SENTENCE_BYTES = 4192  # SentencePiece's own default: longer lines would be skipped in silence

CHOICES = {
    "profile": ("auto", *profiles.PROFILES),
    "unit": ("chapter", "paragraph", "sentence", "document"),
    "headings": ("boundary", "drop", "keep"),
    "gaiji": gaiji.POLICIES,
    "lacunae": lacunae.POLICIES,
    "quotes": ("keep", "curly", "corner", "strip"),
    "script": script.POLICIES,
    "verse": verse.POLICIES,
    "split": ("quoted", "flat"),
    "dedup": ("no", "exact", "near"),
}
RULES = (  # that can be switched off
    *("unwrap", "gaiji", "mojibake", "lacuna", "widen", "notes", "boilerplate", "quotes", "quote-style", "spaces"),
    *("marks", "script", "variants", "punct", "verse"),
)
# Where an option is left at its default, a preset decides. The first is what MoiraiLM trains on, a sentence a line
# without quotes and with the commonest marks only, but with nothing lost or torn on the way.
PRESETS: dict[str, dict[str, Any]] = {
    "": {},
    "moirai": {
        "unit": "sentence",
        "headings": "drop",
        "quotes": "strip",
        "punct": "only:，。！？；：、",
        "split": "flat",
    },
}


class CleanOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`reference/cleaning.md` 4.2 names the rules that they steer.

    `notes` are policies as `（）=drop`, over those of the profile. `gaiji_map`, `pua_map` and `variants` are files that
    map one spelling to another. `boilerplate` are regular expressions for what is to go. `without` switches rules off
    by their names. `min_han` is the least share of Han among the letters of a document, for Chinese profiles;
    `min_chars` and `max_bytes` are of a document and of a line of sentences.txt.
    """

    profile: str = "auto"
    unit: str = "chapter"
    encoding: str = "auto"
    headings: str = "boundary"
    unwrap: bool | None = None
    notes: tuple[str, ...] = ()
    gaiji: str = "lacuna"
    gaiji_map: str = ""
    pua_map: str = ""
    lacunae: str = "keep"
    boilerplate: tuple[str, ...] = ()
    quotes: str = "keep"
    script: str = "keep"
    variants: str = ""
    punct: str = "keep"
    verse: str = "inline"
    split: str = "quoted"
    without: tuple[str, ...] = ()
    min_chars: int = 1
    max_bytes: int = MAX_SENTENCE_BYTES
    min_han: float = 0.5
    dedup: str = "no"
    preset: str = ""
    max_bad: float = DEFAULT_MAX_BAD

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise BadConfig(f"no preset {self.preset!r}", hint=f"one of {', '.join(filter(None, PRESETS))}")
        defaults = dict(zip(self.__struct_fields__, self.__struct_defaults__, strict=True))
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) == defaults[name]:
                msgspec.structs.force_setattr(self, name, value)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise BadConfig(f"no {name} {getattr(self, name)!r}", hint=f"one of {', '.join(choices)}")
        for name in self.without:
            if name not in RULES:
                raise BadConfig(f"--without {name}: no such rule", hint=f"one of {', '.join(RULES)}")
        if not 0 <= self.max_bad <= 1:
            raise BadConfig(f"max_bad is {self.max_bad}", hint="a share, from 0 to 1")
        if self.min_chars < 1:
            raise BadConfig(f"min_chars is {self.min_chars}", hint="1 or more: a document has a text")
        if self.max_bytes < 64:
            raise BadConfig(f"max_bytes is {self.max_bytes}", hint="64 or more: a sentence has to fit")
        if not 0 <= self.min_han <= 1:
            raise BadConfig(f"min_han is {self.min_han}", hint="a share, from 0 to 1")
        punctuation.rule(self.punct)
        boilerplate.rule(self.boilerplate)
        tables_of(self)

    def identity(self) -> dict[str, Any]:
        """What of it decides bytes: the content of tables in place of their names, and no share of bad documents."""
        chosen = msgspec.structs.asdict(self)
        chosen |= {"without": sorted({*self.without}), "notes": sorted({*self.notes})}
        for name in ("gaiji_map", "pua_map", "variants"):
            if chosen[name]:
                chosen[name] = hashlib.sha256(Path(chosen[name]).read_bytes()).hexdigest()
        del chosen["max_bad"], chosen["preset"]
        return chosen


class Tables(NamedTuple):
    """What the options name, read and checked."""

    gaiji: Mapping[str, str]
    pua: Mapping[str, str]
    variants: Mapping[str, str]
    notes: Mapping[str, str]


@cache
def tables_of(options: CleanOptions) -> Tables:
    """Raises InputMissing or BadConfig for a table that cannot be read."""
    return Tables(
        gaiji.load_map(Path(options.gaiji_map)) if options.gaiji_map else {},
        gaiji.load_map(Path(options.pua_map)) if options.pua_map else {},
        variants.load(Path(options.variants)) if options.variants else {},
        notes.parse_policies(options.notes),
    )
