"""Read the rows of a Parquet file as documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import BadConfig, BadData, install_command
from pipeline.readers.documents import Document
from pipeline.runtime.progress import Advance


def read(path: Path, advance: Advance) -> Iterator[Document]:
    """Yield a document for each row, from the column `text` and, if present, `title` and `meta`.

    A row whose text is null is an empty document. Raises BadData if the file is truncated or corrupt or has no string
    column `text`, and BadConfig if pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BadConfig(f"{path}: reading Parquet requires pyarrow", hint=install_command("parquet")) from None
    line = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise BadData(f"{path}: no column `text`", hint=f"its columns: {', '.join(names)}")
            kind = file.schema_arrow.field("text").type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise BadData(
                    f"{path}: the column `text` must be of type string, got {kind}", hint="convert it to strings"
                )
            columns = [name for name in ("text", "title", "meta") if name in names]
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    line += 1
                    text = row["text"] if isinstance(row["text"], str) else ""
                    title = row.get("title")
                    yield Document(text, title if isinstance(title, str) else "", row.get("meta"), path.name, line)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # a failure of the disk, not of the file's content
            raise
        raise BadData(f"{path}: truncated or corrupt Parquet file: {error}", hint="download the file again") from None
    advance(path.stat().st_size)
