"""Card of an exported corpus for Hugging Face's hub: what it is made of, how large it is, and under which licences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.sources.cache import read_lock_file
from pipeline.sources.catalogue import CATALOGUE
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import Input

_LISTED = 20  # inputs in the card


def text(corpus: Artifact) -> str:
    """Return the card as Markdown, with the header that names the Parquet files."""
    manifest = corpus.manifest
    rows = "\n".join(f"| {source} | {files:,} | {licence} |" for source, files, licence in _sources(corpus))
    digests = "\n".join(f"| {_cell(entry.name)} | `{entry.digest}` |" for entry in manifest.inputs[:_LISTED])
    ellipsis = f"\nand {len(manifest.inputs) - _LISTED:,} more\n" if len(manifest.inputs) > _LISTED else ""
    return f"""---
configs:
- config_name: default
  data_files: "*.parquet"
---

# {manifest.name}

{manifest.counts["documents"]:,} documents with {manifest.counts["characters"]:,} characters, cleaned and exported by
Inkstone from `{manifest.ref}`, digest `{corpus.digest}`.

| column | |
|---|---|
| `text` | the document |
| `title` | its title |
| `source` | the file or URL that it comes from |
| `meta` | its other fields, as JSON |

All columns are strings, "" where a document has no such field.

## Sources

| source | files | licence |
|---|---|---|
{rows}

| input | sha256 |
|---|---|
{digests}
{ellipsis}"""


def _sources(corpus: Artifact) -> Iterator[tuple[str, int, str]]:
    """Yield each source with the number of its files, and the licence that the catalogue states."""
    root = corpus.path.parents[2]
    texts = (entry for entry in corpus.manifest.inputs if entry.role != "held-out")
    for source, files in Counter(_source(root, entry) for entry in texts).items():
        yield (source, files, CATALOGUE[source].licence) if source else ("local files", files, "not known")


def _source(root: Path, entry: Input) -> str:
    """Return the catalogue's name of the source that an input was downloaded from, "" for another file."""
    source, _, name = entry.name.partition("/")
    if source not in CATALOGUE:
        return ""
    pin = read_lock_file(root, source).get(name)  # a local folder may have the name of a source
    return source if pin and pin.sha256 == entry.digest else ""


def _cell(name: str) -> str:
    return " ".join(name.replace("|", "\\|").split())
