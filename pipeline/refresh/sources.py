"""The sources of a recipe as one source, in groups that are cleaned separately.

    source = ["novel.txt", "posts"]   →  raw/mine/novel.txt, raw/mine/posts/…   →  corpora/mine, corpora/mine.posts

Each group becomes a corpus of its own, so that a source that is added later leaves the other corpora, and the tokens
made from them, as they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pipeline.errors import BadConfig
from pipeline.refresh.recipe import DownloadSection
from pipeline.sources import catalogue
from pipeline.sources.catalogue import Source, SourceFile
from pipeline.store.manifest import name_from_path


@dataclass(frozen=True)
class SourceGroup:
    """Files that are cleaned into one corpus. The first group has no label: its corpus has the name of the recipe."""

    label: str
    names: frozenset[str]

    def corpus_name(self, recipe: str) -> str:
        return f"{recipe}.{self.label}" if self.label else recipe


def resolve(name: str, section: DownloadSection) -> tuple[Source, tuple[SourceGroup, ...]]:
    """Return the source of the recipe `name`, and its groups: one for each entry of a list, else one of all files.

    Raises BadConfig if the list is empty.
    """
    if isinstance(section.source, str):
        source = _resolve_one(section.source, section)
        return source, (SourceGroup("", frozenset(file.name for file in source.files)),)
    if not section.source:
        raise BadConfig("[download] source is an empty list", hint="name a file, a folder, a URL or a catalogue name")
    files: list[SourceFile] = []
    groups: list[SourceGroup] = []
    tops: set[str] = set()
    for entry in section.source:
        source = _resolve_one(entry, section)
        top = _unique(source.name, tops)
        renamed = [dataclasses.replace(file, name=f"{top}/{file.name}") for file in source.files]
        groups.append(SourceGroup(top if groups else "", frozenset(file.name for file in renamed)))
        files += renamed
    return Source(name, tuple(files)), tuple(groups)


def _resolve_one(reference: str, section: DownloadSection) -> Source:
    shards = section.shards if reference == "pile" else ""
    return catalogue.resolve_source(reference, shards=shards, mirror=section.mirror)


def _unique(name: str, taken: set[str]) -> str:
    """Return `name`, or with the first free number if it is taken, and take it."""
    stem = name_from_path(name)
    label, number = stem, 1
    while label in taken:
        number += 1
        label = f"{stem}-{number}"
    taken.add(label)
    return label
