"""The sources of a recipe as one source, in groups that are cleaned separately.

    source = ["novel.txt", "posts"]   →  raw/mine/novel.txt, raw/mine/posts/…   →  corpora/mine, corpora/mine.posts

Each group becomes a corpus of its own. So a source that is added later does not change the other corpora, or the tokens
made from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadConfig, InputMissing, UpstreamChanged
from pipeline.refresh.recipe import DownloadSection
from pipeline.sources import catalogue, local, origin
from pipeline.sources.catalogue import Source, SourceFile
from pipeline.sources.walk import LeftOut, NotText
from pipeline.store.manifest import name_from_path


@dataclass(frozen=True)
class SourceGroup:
    """Files that are cleaned into one corpus. The first group has no label: its corpus has the name of the recipe."""

    label: str
    names: frozenset[str]

    def corpus_name(self, recipe: str) -> str:
        return f"{recipe}.{self.label}" if self.label else recipe


def resolve(
    name: str,
    section: DownloadSection,
    root: Path,
    list_files: Callable[[Source], Source] | None = None,
    text_fields: Sequence[str] = (),
) -> tuple[Source, tuple[SourceGroup, ...]]:
    """Return the source of the recipe `name`, and its groups: one for each entry of a list, else one of all files.

    `root` is the artifacts folder, which is never read as a source. `list_files` requests the files of a dataset from
    the hub; without it a dataset has none. `text_fields` are the fields of records that hold text. Raises BadConfig if
    the list is empty, UpstreamChanged if a path had text when it was copied and has none now.
    """
    if isinstance(section.source, str):
        source = origin.with_folder(root, _resolve_one(section.source, section, root, text_fields, name))
        source = list_files(source) if list_files else source
        return source, (SourceGroup("", frozenset(file.name for file in source.files)),)
    if not section.source:
        raise BadConfig("[download] source is an empty list", hint="name a file, a folder, a URL or a catalogue name")
    files: list[SourceFile] = []
    groups: list[SourceGroup] = []
    left_out: list[LeftOut] = []
    folders: list[tuple[str, Path]] = []
    tops: set[str] = set()
    for entry in section.source:
        source = _resolve_one(entry, section, root, text_fields, name)
        top = _unique(source.name, tops)
        if list_files and source.dataset:
            source = list_files(dataclasses.replace(source, name=f"{name}.{top}"))
        renamed = [dataclasses.replace(file, name=f"{top}/{file.name}") for file in source.files]
        groups.append(SourceGroup(top if groups else "", frozenset(file.name for file in renamed)))
        files += renamed
        left_out += (dataclasses.replace(entry, name=f"{top}/{entry.name}") for entry in source.left_out)
        folders += ((f"{top}/", folder) for _, folder in source.folders)
    source = Source(
        name, tuple(files), left_out=tuple(left_out), origin=origin.recipe_origin(name), folders=tuple(folders)
    )
    return origin.with_folder(root, source), tuple(groups)


def _resolve_one(
    reference: str, section: DownloadSection, root: Path, text_fields: Sequence[str], recipe: str
) -> Source:
    try:
        return catalogue.resolve_source(
            reference,
            shards=section.shards if reference == "pile" else "",
            mirror=section.mirror,
            include=section.include,
            exclude=section.exclude,
            leave_out=(root,),
            text_fields=text_fields,
        )
    except (InputMissing, NotText) as error:
        if not local.is_lost(root, reference, recipe):
            raise
        loss = error.message if Path(reference).exists() else f"{reference} vanished"
        raise UpstreamChanged(
            f"{loss}; the old copy is kept", hint="put it back, or take it out of the recipe"
        ) from None


def _unique(name: str, taken: set[str]) -> str:
    """Return `name`, with the first free number if it is taken, and add the result to `taken`."""
    stem = name_from_path(name)
    label, number = stem, 1
    while label in taken:
        number += 1
        label = f"{stem}-{number}"
    taken.add(label)
    return label
