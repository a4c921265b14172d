"""Decide whether files hold conversations or preference pairs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import msgspec

from pipeline.clean.chat.formats import CHAT, FORMS, PREFERENCES, Refused, Turn, kind_of, turns_of
from pipeline.clean.options import CleanOptions
from pipeline.errors import BadData
from pipeline.readers import fields, readers
from pipeline.runtime.ledger import Ledger
from pipeline.sources.inputs import InputFile


def with_kind(options: CleanOptions, inputs: Iterable[InputFile]) -> CleanOptions:
    """Return the options, with the profile `preferences` instead of `chat` if the first known record is a pair.

    Raises BadData if no file has a conversation or a pair among its first records.
    """
    if options.profile != CHAT:
        return options
    names = []
    for entry in inputs:
        names.append(str(entry.path))
        documents = readers.read_documents(
            entry.path,
            Ledger(),
            lambda reject: None,
            text_fields=fields.RECORD,
            members=entry.members,
            note=lambda text: None,  # cleaning reports these notes
        )
        for kind in (kind_of(document.meta) for document in islice(documents, fields.SAMPLE)):
            if kind:
                return msgspec.structs.replace(options, profile=kind)
    raise BadData(f"{', '.join(names[:3])}: no conversations", hint=f"expected records with {FORMS}")


def conversation_of(record: Any, kind: str, location: str) -> list[Turn]:
    """Return the turns of a record. Raises Refused for an invalid one, BadData for one of the other kind."""
    if not (actual := kind_of(record)):
        raise Refused("bad-record")
    if actual != kind:
        raise BadData(
            f"{location}: {_NOUNS[actual]}, but the first record is {_NOUNS[kind]}",
            hint="make two corpora: one of the files with conversations, one of the files with preference pairs",
        )
    if not (turns := turns_of(record)):
        raise Refused("no-answer")
    return turns


_NOUNS = {CHAT: "a conversation", PREFERENCES: "a preference pair"}
