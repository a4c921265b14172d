"""Whether an export holds what the store holds: every id in its place and, where kept, every document's border.

It proves the layout, not the disk: what was just written comes back from the page cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.errors import broken
from pipeline.export import arrays as stream
from pipeline.export.format import Borders, Format, Source, Span
from pipeline.tokens.store import TokenArray


def require_same(written: Format, folder: Path, source: Source) -> None:
    """Read the export in `folder` back and compare it with its source. BadData at the first difference."""
    arrays = {"train": source.store.train, "val": source.store.val}
    done = dict.fromkeys(arrays, 0)
    for span in written.read(folder):
        _compare_ids(span, arrays[span.split], done[span.split])
        done[span.split] += len(span.ids)
    for split, array in arrays.items():
        if done[split] != len(array):
            raise broken(f"the {split} split in {written.name}", f"{done[split]:,} tokens instead of {len(array):,}")
    if written.borders:
        for each in source.splits:
            _compare_borders(written.borders(folder, each.name), source.lengths(each.name), each.name)


def _compare_ids(span: Span, array: TokenArray, start: int) -> None:
    stop = start + len(span.ids)
    if stop > len(array):
        raise broken(span.file, f"more than the {len(array):,} tokens of the {span.split} split")
    at = start
    for expected in stream.pieces(array, start, stop):
        got = span.ids[at - start : at - start + len(expected)]
        if not np.array_equal(got, expected):
            place = int(np.flatnonzero(got != expected)[0])
            where = f"token {at + place:,} of the {span.split} split"
            raise broken(span.file, f"{where} is {got[place]} instead of {expected[place]}")
        at += len(expected)


def _compare_borders(borders: Borders, expected: np.ndarray, split: str) -> None:
    got = borders.lengths
    if len(got) != len(expected):
        raise broken(borders.file, f"{len(got):,} {split} documents instead of {len(expected):,}")
    if len(wrong := np.flatnonzero(got != expected)):
        where = f"document {int(wrong[0]):,} of the {split} split"
        raise broken(borders.file, f"{where} has {got[wrong[0]]:,} tokens instead of {expected[wrong[0]]:,}")
