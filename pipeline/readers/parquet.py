"""Parquet rows as documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import BadConfig, BadData
from pipeline.readers.documents import Document
from pipeline.runtime.progress import Advance


def _rows(path: Path, advance: Advance) -> Iterator[Document]:
    """Rows of a Parquet file with a column `text`; `title` and `meta` are taken where they are. Null is no text."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BadConfig(f"{path}: Parquet needs pyarrow", hint="pip install 'inkstone[parquet]'") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise BadData(f"{path}: no column `text`", hint=f"its columns: {', '.join(names)}")
            kind = file.schema_arrow.field("text").type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise BadData(f"{path}: its column `text` is {kind}, not string", hint="write it as strings")
            wanted = [name for name in ("text", "title", "meta") if name in names]
            for batch in file.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    text = row["text"] if isinstance(row["text"], str) else ""
                    title = row.get("title")
                    yield Document(text, title if isinstance(title, str) else "", row.get("meta"), path.name, number)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, not of what is on it
            raise
        raise BadData(f"{path}: not a whole Parquet file: {error}", hint="download the file again") from None
    advance(path.stat().st_size)
