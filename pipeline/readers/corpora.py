"""The files of a corpus: one of documents and one of sentences, or a numbered one of each for every part."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from pipeline.store.artifact import Artifact
from pipeline.store.manifest import FileRecord


def document_records(corpus: Artifact) -> list[FileRecord]:
    """Return the files of JSON lines in the order of their documents: documents.jsonl.zst, or documents-00000…"""
    return _records(corpus, "documents*.jsonl.zst")


def document_files(corpus: Artifact) -> list[Path]:
    return [corpus.file(record.name) for record in document_records(corpus)]


def sentence_files(corpus: Artifact) -> list[Path]:
    return [corpus.file(record.name) for record in _records(corpus, "sentences*.txt")]


def _records(corpus: Artifact, pattern: str) -> list[FileRecord]:
    records = [record for record in corpus.manifest.files if fnmatch.fnmatchcase(record.name, pattern)]
    return sorted(records, key=lambda record: (len(record.name), record.name))
