"""Options of cleaning. All but `max_bad` decide the bytes of the corpus and so are part of its key."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pipeline.clean import profiles
from pipeline.clean.chat.formats import KINDS
from pipeline.clean.report.sentencepiece_flags import DEFAULT_MAX_LINE_BYTES
from pipeline.clean.rule import compile_pattern
from pipeline.clean.rule_names import RULES
from pipeline.clean.rules import (
    boilerplate,
    gaiji,
    lacunae,
    notes,
    punctuation,
    script,
    variants,
    verse,
    whitespace,
)
from pipeline.errors import BadConfig
from pipeline.readers.encoding import codec_name
from pipeline.readers.fields import RECORD
from pipeline.runtime.ledger import DEFAULT_MAX_BAD
from pipeline.runtime.regular_file import regular_file

MAX_SENTENCE_BYTES = DEFAULT_MAX_LINE_BYTES  # SentencePiece skips longer lines without a warning

CHOICES = {
    "profile": ("auto", *profiles.PROFILES),
    "unit": ("chapter", "paragraph", "sentence", "document"),
    "headings": ("boundary", "drop", "keep"),
    "gaiji": gaiji.POLICIES,
    "lacunae": lacunae.POLICIES,
    "gaps": tuple(whitespace.POLICIES),
    "quotes": ("keep", "curly", "corner", "strip"),
    "script": script.POLICIES,
    "verse": verse.POLICIES,
    "split": ("quoted", "flat"),
    "dedup": ("no", "exact", "near"),
}
# A preset sets the options that are left at their defaults. "moirai" is the format that MoiraiLM trains on: a sentence
# per line, without quotes and with the commonest marks only, but without losing or splitting any character.
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
# Defaults of options that older versions do not have: left out of the identity, so that their keys stay.
_NEW_DEFAULTS: dict[str, Any] = {"heading": (), "text_fields": (), "gaps": "keep"}
TABLE_FILES = ("gaiji_map", "pua_map", "variants")


class CleanOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `inkstone clean`. docs/design/cleaning.md 4.2 describes the rules that they control.

    profile      format of the input; `auto` cleans each document as Chinese if most of its letters are Han, else as
                 text; `chat` keeps the turns of conversations or of preference pairs, whichever the first record is
    unit         text that becomes one document of the corpus
    encoding     encoding of plain text files, e.g. `gb18030`; `auto` detects it
    headings     use chapter headings as boundaries, drop them, or keep them as text
    heading      regular expressions of further headings, such as `^正文 第.+回.*`; the match is the title
    unwrap       join hard-wrapped lines; by default as the profile says, and where it is clear that lines are
                 hard-wrapped
    notes        policies for notes in brackets, such as `（）=drop`, which override those of the profile, and for
                 footnotes: `footnotes=drop`
    gaiji        keep characters without an encoding, replace them by □, or drop them
    gaiji_map    table (a file) that replaces characters without an encoding, such as {上休下鳥}
    pua_map      table (a file) that replaces private-use characters
    lacunae      keep □, collapse runs of them, or drop the documents that contain them
    boilerplate  regular expressions of text to delete; `chapter-ends` deletes 且听下回分解 and its variants, `site-ads`
                 what websites add: addresses, notices, navigation, lines of marks
    gaps         keep the spaces between clauses of text without punctuation, make them ， or line ends, or drop them
    quotes       keep quotation marks, convert them to “” or 「」, or strip them
    script       convert Chinese characters with OpenCC
    variants     table (a file) of characters and what replaces them, e.g. 爲 → 為
    punct        keep punctuation, strip it, or keep only these marks: `only:。，！？`
    verse        keep verse within prose, put it on lines of its own, or drop it
    split        end sentences outside quotes only, or everywhere
    without      names of rules to switch off
    min_chars    minimum number of characters of a document
    max_bytes    longest line of sentences.txt, in bytes
    min_han      minimum fraction of Han among the letters of a document; by default 0.5 if `profile` names a Chinese
                 one, otherwise no limit
    dedup        drop documents equal to an earlier one, or nearly so
    preset       options that `moirai` sets together: a sentence per line, no quotes, common punctuation only
    max_bad      largest fraction of bad documents that is accepted
    text_fields  names of the fields or columns that hold the text of a record; by default `text`, or the one that
                 dominates
    decontaminate  validation or test corpora, files or folders: drop the documents that share passages with them
    """

    profile: str = "auto"
    unit: str = "chapter"
    encoding: str = "auto"
    headings: str = "boundary"
    heading: tuple[str, ...] = ()
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
    min_han: float | None = None
    dedup: str = "no"
    preset: str = ""
    max_bad: float = DEFAULT_MAX_BAD
    text_fields: tuple[str, ...] = ()
    gaps: str = "keep"
    decontaminate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.preset:
            _check_choice("--preset", self.preset, tuple(filter(None, PRESETS)))
        msgspec.structs.force_setattr(self, "profile", profiles.ALIASES.get(self.profile, self.profile))
        defaults = dict(zip(self.__struct_fields__, self.__struct_defaults__, strict=True))
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) == defaults[name]:
                msgspec.structs.force_setattr(self, name, value)
        for name, choices in CHOICES.items():
            _check_choice(f"--{name}", getattr(self, name), choices)
        for rule in self.without:
            _check_choice("--without rule", rule, RULES)
        if not 0 <= self.max_bad <= 1:
            raise BadConfig(f"--max-bad must be in [0, 1], got {self.max_bad}", hint="pass a fraction of the documents")
        if self.min_chars < 1:
            raise BadConfig(
                f"--min-chars must be 1 or more, got {self.min_chars}",
                hint="pass 1 or more: a document cannot be empty",
            )
        if self.max_bytes < 64:
            raise BadConfig(
                f"--max-bytes must be 64 or more, got {self.max_bytes}",
                hint="pass 64 or more: a line must hold a sentence",
            )
        if self.min_han is not None and not 0 <= self.min_han <= 1:
            raise BadConfig(f"--min-han must be in [0, 1], got {self.min_han}", hint="pass a fraction of the letters")
        if self.is_chat and (self.text_fields or self.unit in ("paragraph", "sentence")):
            option = "--text-field" if self.text_fields else f"--unit {self.unit}"
            raise BadConfig(f"{option} and --profile {self.profile} exclude each other", hint=f"leave {option} out")
        codec_name(self.encoding)
        punctuation.rule(self.punct)
        boilerplate.rule(self.boilerplate)
        for pattern in self.heading:
            compile_pattern("--heading", pattern)
        load_tables(self)

    @property
    def is_chat(self) -> bool:
        """True if the records are conversations or preference pairs."""
        return self.profile in KINDS

    @property
    def record_fields(self) -> tuple[str, ...]:
        """The fields that are read from a record: those with its text, or the complete record."""
        return RECORD if self.is_chat else self.text_fields

    def identity(self) -> dict[str, Any]:
        """Return the options that decide bytes, with table files replaced by the SHA-256 of their content."""
        options = msgspec.structs.asdict(self)
        options |= {"without": sorted({*self.without}), "notes": sorted({*self.notes})}
        for name in TABLE_FILES:
            if options[name]:
                options[name] = hashlib.sha256(regular_file(Path(options[name])).read_bytes()).hexdigest()
        if self.is_chat:
            options["format"] = self.profile
        del options["max_bad"], options["preset"], options["decontaminate"]  # which is among the inputs
        return {name: value for name, value in options.items() if value != _NEW_DEFAULTS.get(name, ...)}

    def settings(self) -> dict[str, Any]:
        """Return what the identity does not show, if it is not the default: `max_bad`, tables, held-out text."""
        tables = {name: os.path.abspath(path) for name in TABLE_FILES if (path := getattr(self, name))}
        others: dict[str, Any] = {"decontaminate": self.decontaminate} if self.decontaminate else {}
        return tables | others | ({"max_bad": self.max_bad} if self.max_bad != DEFAULT_MAX_BAD else {})


def _check_choice(label: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BadConfig(f"unknown {label} {value!r}", hint=f"choose one of {', '.join(choices)}")


class MappingTables(NamedTuple):
    """Tables that the options name, read and checked."""

    gaiji: Mapping[str, str]
    pua: Mapping[str, str]
    variants: Mapping[str, str]
    notes: Mapping[str, str]


@cache
def load_tables(options: CleanOptions) -> MappingTables:
    """Read the tables. Raises InputMissing or BadConfig if one cannot be read."""
    return MappingTables(
        gaiji.load_map(Path(options.gaiji_map)) if options.gaiji_map else {},
        gaiji.load_map(Path(options.pua_map)) if options.pua_map else {},
        variants.load_table(Path(options.variants)) if options.variants else {},
        notes.parse_policies(options.notes),
    )
