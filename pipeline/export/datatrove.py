"""datatrove: `NAME_train.ds` holds ids without a header, `.ds.index` where documents end, `.ds.metadata` their kind.

    .ds.index       <u8 for each document: its end in tokens, exclusive, end-of-text included
    .ds.metadata    `tokenizer|bytes of an id`, number of tokens, the same for people; no newline at the end

Its merger takes ids for 2 bytes wide when the metadata does not say otherwise, and fails on a `|` in a tokenizer's
name. Source: datatrove's pipeline/tokens/tokenizer.py, pipeline/tokens/merger.py and utils/dataset.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import broken
from pipeline.export import arrays as stream
from pipeline.export.format import Borders, Format, Source, Span
from pipeline.tokens import segments

_DTYPES = {"2": "<u2", "4": "<u4"}


def _write(source: Source, folder: Path) -> None:
    tokenizer = source.store.tokenizer
    name = (tokenizer.name or tokenizer.fingerprint).replace("|", "-")
    itemsize = np.dtype(source.dtype).itemsize
    for split in source.splits:
        path = folder / f"{source.name}_{split.name}.ds"
        stream.write_split(split, path)
        ends = np.cumsum(source.lengths(split.name), dtype="<u8")
        stream.write_ids(path.with_suffix(".ds.index"), [ends])
        lines = [f"{name}|{itemsize}", str(len(split.ids)), _metric(len(split.ids))]
        path.with_suffix(".ds.metadata").write_text("\n".join(lines), encoding="utf-8")


def _metric(count: int) -> str:
    """`1.23 MT`: three digits and a prefix, as `humanize.metric(count, unit="T")` gives them, which datatrove calls."""
    exponent = len(str(count)) - 1
    prefix = ("", "k", "M", "G", "T", "P")[exponent // 3]
    return f"{count / 1000 ** (exponent // 3):.{2 - exponent % 3}f} {prefix}T"


def _read(folder: Path) -> Iterator[Span]:
    for split in segments.SPLITS:
        for path in folder.glob(f"*_{split}.ds"):
            dtype, count = _metadata(path.with_suffix(".ds.metadata"))
            if path.stat().st_size != count * np.dtype(dtype).itemsize:
                raise broken(path.name, f"{path.stat().st_size:,} bytes are not {count:,} ids of {dtype}")
            for ids in stream.read_ids(path, dtype):
                yield Span(split, path.name, ids)


def _metadata(path: Path) -> tuple[str, int]:
    """dtype and number of the ids that the metadata in `path` is about."""
    try:
        kind, count, _ = path.read_text(encoding="utf-8").split("\n")
        return _DTYPES[kind.rpartition("|")[2]], int(count)
    except (ValueError, KeyError):
        raise broken(path.name, "not `tokenizer|2 or 4`, a number of tokens, and a third line") from None


def _borders(folder: Path, split: str) -> Borders:
    (path,) = folder.glob(f"*_{split}.ds.index")
    return Borders(path.name, np.diff(np.fromfile(path, "<u8").astype(np.int64), prepend=0))


FORMAT = Format("datatrove", _write, _read, _borders, links=True)
