"""Exported corpora: rows that other readers load, in files of a known layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from pipeline.clean import stage
from pipeline.clean.options import CleanOptions
from pipeline.errors import BadConfig, BadData, CannotCreate, StorageFailed
from pipeline.export import corpus as corpus_export
from pipeline.export.corpus import FORMATS, export
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.catalogue import resolve_source
from pipeline.sources.download import download
from pipeline.sources.inputs import resolve_inputs
from pipeline.store import files
from pipeline.store.artifact import Artifact

RECORDS: list[dict[str, Any]] = [
    *({"text": f"A stone of number {number} is in the brook."} for number in range(60)),
    {"text": "A late document has a title.", "title": "Late", "meta": {"year": 1820, "tags": ["a"]}},
    {"text": 'Another one has\nother "metadata".', "meta": {"year": "unknown"}},
    {"text": "砚山有石。", "title": "砚", "meta": {"author": "米芾"}},
]


def clean(root: Path, reference: str, **options: Any) -> Artifact:
    inputs = resolve_inputs(root, reference, corpora=False)
    settings = CleanOptions(**options)
    held_out = stage.held_out_files(root, settings)
    return stage.clean(root, "mixed", inputs, settings, SilentProgress(), held_out=held_out).artifact


@pytest.fixture
def mixed(root: Path, tmp_path: Path) -> Artifact:
    """A corpus whose documents differ in their fields, and in the type of a field."""
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return clean(root, str(path))


def expected_rows() -> list[dict[str, str]]:
    rows = []
    for record in RECORDS:
        meta = record.get("meta", "")
        text = meta and json.dumps(meta, ensure_ascii=False, separators=(",", ":"))
        rows.append({"text": record["text"], "title": record.get("title", ""), "source": "mixed.jsonl", "meta": text})
    return rows


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("to", FORMATS)
def test_every_row_has_the_same_four_strings(mixed: Artifact, tmp_path: Path, to: str) -> None:
    exported = export(mixed, to, tmp_path / "out", verify=True)
    if to == "jsonl":
        rows = [json.loads(line) for line in (exported.path / "mixed.jsonl").read_text("utf-8").splitlines()]
    else:
        rows = [row for name in sorted(exported.path.glob("*.parquet")) for row in parquet.read_table(name).to_pylist()]
    assert rows == expected_rows()
    assert (exported.documents, exported.verified) == (len(RECORDS), True)
    assert exported.bytes == sum(map(len, bytes_of(exported.path).values()))


@pytest.mark.parametrize("to", FORMATS)
def test_two_exports_of_a_corpus_have_the_same_bytes(mixed: Artifact, tmp_path: Path, to: str) -> None:
    first, second = (export(mixed, to, tmp_path / name).path for name in ("first", "second"))
    assert bytes_of(first) == bytes_of(second)


def test_last_parquet_file_has_a_twentieth_of_the_documents(mixed: Artifact, tmp_path: Path) -> None:
    folder = export(mixed, "parquet", tmp_path / "out").path
    counts = {path.name: parquet.ParquetFile(path).metadata.num_rows for path in folder.iterdir()}
    assert counts == {"mixed-00000.parquet": 60, "mixed-00001.parquet": 3}


def test_files_and_row_groups_have_bounded_sizes(
    mixed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_export, "_FILE_CHARACTERS", 1000)
    monkeypatch.setattr(corpus_export, "_GROUP_ROWS", 8)
    folder = export(mixed, "parquet", tmp_path / "out", verify=True).path
    tables = [parquet.ParquetFile(path) for path in sorted(folder.iterdir())]
    groups = [[table.metadata.row_group(index).num_rows for index in range(table.num_row_groups)] for table in tables]
    assert groups == [[8, 8, 8, 4], [8, 8, 8, 4], [4], [3]]
    monkeypatch.setattr(corpus_export, "_GROUP_CHARACTERS", 100)
    folder = export(mixed, "parquet", tmp_path / "small", verify=True).path
    assert parquet.ParquetFile(folder / "mixed-00003.parquet").num_row_groups == 1
    assert parquet.ParquetFile(folder / "mixed-00000.parquet").metadata.row_group(0).num_rows == 3


def test_one_document_is_one_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("A single text of some words.\n")
    exported = export(clean(root, str(tmp_path / "one.txt"), unit="document"), "parquet", tmp_path / "out", verify=True)
    assert exported.files == ("mixed-00000.parquet",)


def test_out_may_be_the_json_lines_file_itself(mixed: Artifact, tmp_path: Path) -> None:
    exported = export(mixed, "jsonl", tmp_path / "new" / "book.jsonl", verify=True)
    assert (exported.files, exported.bytes) == (("book.jsonl",), exported.path.stat().st_size)
    assert [path.name for path in exported.path.parent.iterdir()] == ["book.jsonl"]
    with pytest.raises(CannotCreate, match="already exists"):
        export(mixed, "jsonl", exported.path)


def test_file_created_during_the_export_is_kept(
    mixed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, sync = tmp_path / "book.jsonl", files.sync

    def create(paths: list[Path]) -> None:
        sync(paths)
        out.write_text("mine")

    monkeypatch.setattr(files, "sync", create)
    with pytest.raises(CannotCreate, match="meanwhile"):
        export(mixed, "jsonl", out)
    assert out.read_text() == "mine"


def test_verify_names_the_first_document_that_differs(
    mixed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FORMATS["jsonl"]

    def damage(corpus: Artifact, folder: Path) -> None:
        original.write(corpus, folder)
        path = folder / "mixed.jsonl"
        path.write_bytes(path.read_bytes().replace(b"number 4 ", b"number 5 "))

    monkeypatch.setitem(FORMATS, "jsonl", corpus_export.CorpusFormat(damage, original.read, original.suffix))
    with pytest.raises(BadData, match="document 5: differs"):
        export(mixed, "jsonl", tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


def test_unknown_format_and_full_disk_are_refused(
    mixed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadConfig) as caught:
        export(mixed, "csv", tmp_path / "out")
    assert caught.value.hint == "formats: parquet, jsonl, hf"
    monkeypatch.setattr(files, "free_space", lambda folder: 10)
    with pytest.raises(StorageFailed):
        export(mixed, "jsonl", tmp_path / "out")


def test_dataset_card_names_sources_counts_and_licences(root: Path, tmp_path: Path, mixed: Artifact) -> None:
    local = (export(mixed, "hf", tmp_path / "local").path / "README.md").read_text()
    assert "| local files | 1 | not known |" in local
    assert f"{len(RECORDS)} documents" in local
    assert mixed.digest in local
    download(root, resolve_source("sample"), SilentProgress())
    public = clean(root, "sample")
    card = (export(public, "hf", tmp_path / "public").path / "README.md").read_text()
    assert "| sample | 2 | CC0 |" in card


def test_dataset_card_counts_no_held_out_text_as_a_source(root: Path, tmp_path: Path, mixed: Artifact) -> None:
    other = tmp_path / "other.txt"
    other.write_text("The moss of the north wall is older than the wall.", encoding="utf-8")
    filtered = clean(root, str(other), decontaminate=(mixed.ref,))
    card = (export(filtered, "hf", tmp_path / "out").path / "README.md").read_text()
    assert "| local files | 1 | not known |" in card
    assert f"| {mixed.ref} | `{mixed.digest}` |" in card


# --- by the readers themselves ---


def test_datasets_loads_the_folder(mixed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    for to, pattern in (("hf", None), ("jsonl", "mixed.jsonl")):
        folder = export(mixed, to, tmp_path / to).path
        loaded = datasets.load_dataset(str(folder), data_files=pattern, cache_dir=str(tmp_path / "cache"))
        assert loaded["train"].to_list() == expected_rows()


def test_pandas_loads_both_formats(mixed: Artifact, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frames = (
        pandas.read_parquet(export(mixed, "parquet", tmp_path / "out").path),
        pandas.read_json(export(mixed, "jsonl", tmp_path / "out.jsonl").path, lines=True, dtype=str),
    )
    for frame in frames:
        assert frame.to_dict("records") == expected_rows()


def test_polars_loads_both_formats(mixed: Artifact, tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    frames = (
        polars.read_parquet(export(mixed, "parquet", tmp_path / "out").path / "*.parquet"),
        polars.read_ndjson(export(mixed, "jsonl", tmp_path / "out.jsonl").path, infer_schema_length=10),
    )
    for frame in frames:
        assert frame.to_dicts() == expected_rows()


def test_duckdb_loads_both_formats(mixed: Artifact, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    folder = export(mixed, "parquet", tmp_path / "out").path
    file = export(mixed, "jsonl", tmp_path / "out.jsonl").path
    expected = [tuple(row.values()) for row in expected_rows()]
    assert duckdb.sql(f"SELECT * FROM '{folder}/*.parquet'").fetchall() == expected
    assert duckdb.sql(f"SELECT text, title, source FROM '{file}'").fetchall() == [row[:3] for row in expected]
