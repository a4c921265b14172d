"""Export of a corpus: its documents as Parquet, as JSON lines, or as a folder for Hugging Face's `datasets`.

    parquet    NAME-00000.parquet, …   row groups of 1,024 documents, zstd
    jsonl      NAME.jsonl
    hf         the files of parquet, and a dataset card README.md

Every row has the same four strings: `text`, `title`, `source` and `meta`; one that a document lacks is "". `meta` is
JSON, because its type may differ between documents and readers of tables need one type.

nanochat reads the column `text` of all Parquet files in the order of their names, and validates on the last one
(nanochat/dataset.py). So the last twentieth of the documents has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from pipeline.clean.chat.formats import CHAT, PREFERENCES
from pipeline.errors import BadConfig, export_mismatch
from pipeline.export import dataset_card
from pipeline.readers import compression, jsonl
from pipeline.readers.corpora import document_files
from pipeline.store import artifact, exports, files
from pipeline.store.artifact import Artifact
from pipeline.store.leftovers import require_new

_FILE_CHARACTERS = 250_000_000  # and _GROUP_ROWS: those of nanochat's dev/repackage_data_reference.py
_GROUP_ROWS = 1024
_GROUP_CHARACTERS = 1 << 24
_VALIDATION_PART = 20


Messages = list[dict[str, str]] | msgspec.UnsetType
_TURNS = {CHAT: ("messages",), PREFERENCES: ("chosen", "rejected")}  # fields by the format of the corpus


class Row(msgspec.Struct):
    """One document in an export. `meta` is JSON, or "" without metadata.

    A conversation has `messages`, a preference pair `chosen` and `rejected`.
    """

    text: str
    title: str = ""
    source: str = ""
    meta: str = ""
    messages: Messages = msgspec.UNSET
    chosen: Messages = msgspec.UNSET
    rejected: Messages = msgspec.UNSET


class _Document(msgspec.Struct):
    """One line of a corpus."""

    text: str
    title: str | None = None
    source: str | None = None
    meta: Any = None  # a string since SCHEMA 6 of clean
    messages: Messages = msgspec.UNSET
    chosen: Messages = msgspec.UNSET
    rejected: Messages = msgspec.UNSET


@dataclass(frozen=True)
class CorpusFormat:
    """A format: `write` fills an empty folder, `read` yields the rows of that folder in order.

    `suffix` is that of the file, if the format has one file only.
    """

    write: Callable[[Artifact, Path], None]
    read: Callable[[Path], Iterator[Row]]
    suffix: str = ""


@dataclass(frozen=True)
class ExportedCorpus:
    """Outcome of an export: `files` are paths inside `path`, `bytes` their total size."""

    format: str
    path: Path
    files: tuple[str, ...]
    documents: int
    characters: int
    bytes: int
    verified: bool


def export(corpus: Artifact, format_name: str, out: Path, *, verify: bool = False) -> ExportedCorpus:
    """Write the documents of a corpus as the new folder `out`, completely or not at all.

    `out` may also be the file itself, such as `book.jsonl`. With `verify`, the rows are first read back and compared.

    Raises BadConfig for an unknown format, CannotCreate if `out` exists, StorageFailed when there is not enough space,
    BadData when the corpus is damaged or the export does not read back.
    """
    if format_name not in FORMATS:
        raise BadConfig(f"no format {format_name!r} to export a corpus to", hint=f"formats: {', '.join(FORMATS)}")
    corpus_format = FORMATS[format_name]
    require_new(out, outside=corpus.path)
    counts = artifact.require_intact(corpus).manifest.require_counts("documents", "characters")
    size = (
        counts["characters"] if format_name == "jsonl" else sum(path.stat().st_size for path in document_files(corpus))
    )
    files.require_space(out.parent, size, option="--out")
    with artifact.lease(corpus), exports.new_export(out, corpus_format.suffix) as draft:
        corpus_format.write(corpus, draft)
        if verify:
            _require_same(corpus_format.read(draft), corpus)
    names, size = exports.files_of(out)
    return ExportedCorpus(format_name, out, names, counts["documents"], counts["characters"], size, verify)


def _rows(corpus: Artifact) -> Iterator[Row]:
    decode = msgspec.json.Decoder(_Document).decode
    for path in document_files(corpus):
        for _, line, _ in jsonl.split_lines(compression.read_blocks(path)):
            document = decode(line)
            meta = jsonl.pack_meta(document.meta)
            turns = (document.messages, document.chosen, document.rejected)
            yield Row(document.text, document.title or "", document.source or "", meta, *turns)


def _require_same(exported: Iterator[Row], corpus: Artifact) -> None:
    for number, (actual, expected) in enumerate(zip_longest(exported, _rows(corpus)), 1):
        if actual != expected:
            problem = "missing" if actual is None else "one too many" if expected is None else "differs"
            raise export_mismatch(f"document {number:,}", f"{problem} when read back")


# JSON lines


def _write_jsonl(corpus: Artifact, folder: Path) -> None:
    encode = msgspec.json.Encoder().encode
    with open(folder / f"{corpus.manifest.name}.jsonl", "xb") as file:
        for row in _rows(corpus):
            file.write(encode(row) + b"\n")


def _read_jsonl(folder: Path) -> Iterator[Row]:
    decode = msgspec.json.Decoder(Row).decode
    for path in folder.glob("*.jsonl"):
        with open(path, "rb") as file:
            yield from map(decode, file)


# Parquet


def _write_parquet(corpus: Artifact, folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    turns = pyarrow.list_(pyarrow.struct([(name, pyarrow.string()) for name in ("role", "content")]))
    columns_of_turns = _TURNS.get(str(corpus.manifest.options.get("format", "")), ())
    schema = pyarrow.schema(
        [(name, pyarrow.string()) for name in ("text", "title", "source", "meta")]
        + [(name, turns) for name in columns_of_turns]
    )
    for file, groups in groupby(_row_groups(corpus), key=itemgetter(0)):
        path = folder / f"{corpus.manifest.name}-{file:05d}.parquet"
        with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            for _, rows in groups:
                columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
                writer.write_table(pyarrow.table(columns, schema), row_group_size=len(rows))


def _row_groups(corpus: Artifact) -> Iterator[tuple[int, list[Row]]]:
    """Yield (index of the file, rows) of each row group."""
    documents = corpus.manifest.counts["documents"]
    first_of_last = documents - max(documents // _VALIDATION_PART, 1)
    file, file_characters, characters = 0, 0, 0
    group: list[Row] = []
    for index, row in enumerate(_rows(corpus)):
        is_new_file = file_characters >= _FILE_CHARACTERS or 0 < index == first_of_last
        if group and (is_new_file or len(group) == _GROUP_ROWS or characters >= _GROUP_CHARACTERS):
            yield file, group
            group, characters = [], 0
        if is_new_file:
            file, file_characters = file + 1, 0
        group.append(row)
        characters += len(row.text)
        file_characters += len(row.text)
    yield file, group


def _read_parquet(folder: Path) -> Iterator[Row]:
    from pyarrow import parquet

    for path in sorted(folder.glob("*.parquet")):
        with parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield from msgspec.convert(file.read_row_group(group).to_pylist(), list[Row])


def _write_hf(corpus: Artifact, folder: Path) -> None:
    _write_parquet(corpus, folder)
    (folder / "README.md").write_text(dataset_card.text(corpus), encoding="utf-8")


FORMATS = {
    "parquet": CorpusFormat(_write_parquet, _read_parquet),
    "jsonl": CorpusFormat(_write_jsonl, _read_jsonl, ".jsonl"),
    "hf": CorpusFormat(_write_hf, _read_parquet),
}
