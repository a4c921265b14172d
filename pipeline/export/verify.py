"""Comparison of an export with the store: every id and, where the format stores them, every document length.

It checks the layout, not the disk: a file that was just written is read from the page cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.errors import export_mismatch
from pipeline.export import arrays
from pipeline.export.format import DocumentLengths, Span, TokenFormat, TokenSource
from pipeline.tokens.store import TokenArray


def require_same(token_format: TokenFormat, folder: Path, source: TokenSource) -> None:
    """Read the export in `folder` back and compare it with its source. Raises BadData at the first difference."""
    splits = {"train": source.store.train, "val": source.store.val}
    positions = dict.fromkeys(splits, 0)
    for span in token_format.read(folder):
        _compare_ids(span, splits[span.split], positions[span.split])
        positions[span.split] += len(span.ids)
    for name, ids in splits.items():
        if positions[name] != len(ids):
            problem = f"{positions[name]:,} tokens instead of {len(ids):,}"
            raise export_mismatch(f"the {name} split in {token_format.name}", problem)
    if token_format.read_lengths:
        for split in source.splits:
            _compare_lengths(token_format.read_lengths(folder, split.name), source.lengths(split.name), split.name)
    if token_format.check:
        token_format.check(folder, source)


def _compare_ids(span: Span, array: TokenArray, start: int) -> None:
    stop = start + len(span.ids)
    if stop > len(array):
        raise export_mismatch(span.file, f"more than the {len(array):,} tokens of the {span.split} split")
    position = start
    for expected in arrays.blocks(array, start, stop):
        actual = span.ids[position - start : position - start + len(expected)]
        if not np.array_equal(actual, expected):
            index = int(np.flatnonzero(actual != expected)[0])
            token = f"token {position + index:,} of the {span.split} split"
            raise export_mismatch(span.file, f"{token} is {actual[index]} instead of {expected[index]}")
        position += len(expected)


def _compare_lengths(documents: DocumentLengths, expected: np.ndarray, split: str) -> None:
    actual = documents.lengths
    if len(actual) != len(expected):
        raise export_mismatch(documents.file, f"{len(actual):,} {split} documents instead of {len(expected):,}")
    if len(different := np.flatnonzero(actual != expected)):
        index = int(different[0])
        document = f"document {index:,} of the {split} split"
        raise export_mismatch(documents.file, f"{document} has {actual[index]:,} tokens instead of {expected[index]:,}")
