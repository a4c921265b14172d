"""datatrove: `NAME_train.ds` holds ids without a header, `.ds.index` document ends, `.ds.metadata` the tokenizer.

    .ds.index       <u8 for each document: its end in tokens, exclusive, end-of-text included
    .ds.loss        of conversations: a byte for each id, 1 if it has a loss
    .ds.metadata    `tokenizer|bytes per id`, number of tokens, the same in readable form; no newline at the end

datatrove's merger assumes 2 bytes per id unless the metadata gives the size, and fails on a `|` in a tokenizer's name.
Source: datatrove's pipeline/tokens/tokenizer.py, pipeline/tokens/merger.py and utils/dataset.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import export_mismatch
from pipeline.export import arrays
from pipeline.export.format import DocumentLengths, Span, TokenFormat, TokenSource
from pipeline.tokens import segments
from pipeline.tokens.store import TokenArray

_LOSS = ".ds.loss"
_DTYPES = {"2": "<u2", "4": "<u4"}


def _write(source: TokenSource, folder: Path) -> None:
    tokenizer = source.store.tokenizer
    name = (tokenizer.name or tokenizer.fingerprint).replace("|", "-")
    itemsize = np.dtype(source.dtype).itemsize
    masks = _masks(source)
    for split in source.splits:
        path = folder / f"{source.name}_{split.name}.ds"
        arrays.write_ids(path, arrays.blocks(split.ids))
        ends = np.cumsum(source.lengths(split.name), dtype="<u8")
        arrays.write_ids(path.with_suffix(".ds.index"), [ends])
        if mask := masks[split.name]:
            arrays.write_ids(path.with_suffix(_LOSS), arrays.blocks(mask))
        lines = [f"{name}|{itemsize}", str(len(split.ids)), _metric(len(split.ids))]
        path.with_suffix(".ds.metadata").write_text("\n".join(lines), encoding="utf-8")


def _metric(count: int) -> str:
    """Format a count with three digits and an SI prefix, such as `1.23 MT`.

    Same result as `humanize.metric(count, unit="T")`, which datatrove calls.
    """
    exponent = len(str(count)) - 1
    prefix = ("", "k", "M", "G", "T", "P")[exponent // 3]
    return f"{count / 1000 ** (exponent // 3):.{2 - exponent % 3}f} {prefix}T"


def _read(folder: Path) -> Iterator[Span]:
    for split in segments.SPLITS:
        for path in folder.glob(f"*_{split}.ds"):
            dtype, count = _read_metadata(path.with_suffix(".ds.metadata"))
            if path.stat().st_size != count * np.dtype(dtype).itemsize:
                raise export_mismatch(path.name, f"{path.stat().st_size:,} bytes are not {count:,} ids of {dtype}")
            for ids in arrays.read_ids(path, dtype):
                yield Span(split, path.name, ids)


def _read_metadata(path: Path) -> tuple[str, int]:
    """Return the dtype and the number of ids that a metadata file states."""
    try:
        tokenizer, count, _ = path.read_text(encoding="utf-8").split("\n")
        return _DTYPES[tokenizer.rpartition("|")[2]], int(count)
    except (ValueError, KeyError):
        raise export_mismatch(
            path.name, "expected three lines: `tokenizer|2 or 4`, a number of tokens, a text"
        ) from None


def _read_lengths(folder: Path, split: str) -> DocumentLengths:
    (path,) = folder.glob(f"*_{split}.ds.index")
    return DocumentLengths(path.name, np.diff(np.fromfile(path, "<u8").astype(np.int64), prepend=0))


def _masks(source: TokenSource) -> dict[str, TokenArray | None]:
    return {"train": source.store.train_mask, "val": source.store.val_mask}


def _check_losses(folder: Path, source: TokenSource) -> None:
    """Compare the masks of conversations with the store. Raises BadData at the first difference."""
    masks = _masks(source)
    for split in source.splits:
        path = folder / f"{source.name}_{split.name}{_LOSS}"
        if (mask := masks[split.name]) and not np.array_equal(np.fromfile(path, "u1"), mask.read(0, len(mask))):
            raise export_mismatch(path.name, "differs from the mask of the tokens")


FORMAT = TokenFormat("datatrove", _write, _read, _read_lengths, check=_check_losses, has_mask=True)
