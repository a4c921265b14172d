"""Parquet and Arrow files that hold far more text than bytes."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from pipeline.errors import BadData
from pipeline.readers import columnar, readers
from pipeline.runtime.ledger import Ledger

MIB = 1 << 20


def write(path: Path, table: pyarrow.Table) -> Path:
    """Write a table in the format of its name; readers of Parquet learn nothing of its dictionaries."""
    if path.suffix == ".parquet":
        parquet.write_table(table, path, compression="zstd", store_schema=False)
        return path
    new = pyarrow.ipc.new_stream if path.stem == "stream" else pyarrow.ipc.new_file
    with new(path, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return path


def repeated(text: str, rows: int) -> pyarrow.Array:
    """A column whose rows are the only entry of its dictionary."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array([text]))


def peak(path: Path, text_fields: tuple[str, ...] = ()) -> tuple[int, int]:
    """Return the number of documents, and the most bytes that pyarrow held while they were read."""
    before = pyarrow.total_allocated_bytes()
    most = count = 0
    for _ in readers.read_documents(path, Ledger(), print, text_fields=text_fields, note=lambda text: None):
        most, count = max(most, pyarrow.total_allocated_bytes() - before), count + 1
    return count, most


NAMES = ("a.parquet", "stream.arrow", "file.arrow")


@pytest.mark.parametrize("name", NAMES)
def test_a_dictionary_is_held_once_however_many_rows_name_it(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, pyarrow.table({"text": repeated("ab" * MIB, 100)}))  # 200 MiB of text
    assert path.stat().st_size < 10_000
    count, most = peak(path)
    assert count == 100
    assert most < 80 * MIB


@pytest.mark.parametrize("name", NAMES)
def test_a_dictionary_within_a_list_is_held_once(tmp_path: Path, name: str) -> None:
    column = pyarrow.ListArray.from_arrays(pyarrow.array(range(101), pyarrow.int32()), repeated("ab" * MIB, 100))
    path = write(tmp_path / name, pyarrow.table({"body": column}))
    count, most = peak(path, ("body",))
    assert count == 100
    assert most < 80 * MIB


@pytest.mark.parametrize("name", NAMES)
def test_text_far_beyond_the_size_of_its_file_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, pyarrow.table({"text": repeated("ab" * MIB, 200)}))
    with pytest.raises(BadData, match=re.escape("over the limit of 16,384 to 1")):
        peak(path)


@pytest.mark.parametrize("name", NAMES)
def test_pages_that_expand_too_much_are_refused_before_they_are_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "_SMALL", MIB)
    rows = [f"{number} " + "ab" * (MIB // 8) for number in range(8)]
    path = write(tmp_path / name, pyarrow.table({"text": rows}))
    before = pyarrow.default_memory_pool().max_memory()
    with pytest.raises(BadData, match=r"bytes expand to 2,\d+,\d+ bytes at once, over the limit of 100 to 1"):
        peak(path)
    assert pyarrow.default_memory_pool().max_memory() == before
    monkeypatch.setattr(columnar, "_SMALL", 4 * MIB)
    assert peak(path)[0] == 8


def test_a_row_longer_than_a_json_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "MAX_LINE_BYTES", MIB)
    monkeypatch.setattr(columnar, "_SLICE_BYTES", MIB)
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 9], pyarrow.int32()), repeated("ab" * (MIB // 8), 9))
    path = write(tmp_path / "file.arrow", pyarrow.table({"body": lists}))
    with pytest.raises(BadData, match=r"a row of 2,097,152 bytes; the limit is 1,048,576"):
        peak(path, ("body",))


@pytest.mark.parametrize("kind", [pyarrow.string_view(), pyarrow.large_string(), pyarrow.string()])
@pytest.mark.parametrize("name", NAMES)
def test_long_and_short_rows_come_in_order(tmp_path: Path, name: str, kind: pyarrow.DataType) -> None:
    rows = [f"{number} " + "水" * (MIB if number % 30 == 7 else number) for number in range(100)]
    path = write(tmp_path / name, pyarrow.table({"text": pyarrow.array(rows).cast(kind)}))
    assert [document.text for document in readers.read_documents(path, Ledger(), print)] == rows


@pytest.mark.parametrize("name", NAMES)
def test_two_columns_of_one_name_are_refused_where_they_are_the_text(tmp_path: Path, name: str) -> None:
    columns = [pyarrow.array(["a", "b"]), pyarrow.array(["long text", "another"])]
    path = write(tmp_path / name, pyarrow.table(columns, names=["body", "body"]))
    with pytest.raises(BadData, match="2 columns are named body"):
        peak(path)
    path = write(tmp_path / name, pyarrow.table([*columns, columns[1]], names=["id", "id", "text"]))
    assert peak(path)[0] == 2
