"""The numbers of a corpus report equal the manifest and an independent count of the published documents."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from pipeline.errors import BadData
from pipeline.report import charts, corpus, reports
from pipeline.report.bins import bins_of
from pipeline.report.languages import Language
from pipeline.report.replay import changes_of_rules
from tests.pipeline.report.conftest import HOSTILE, read, run


def published_texts(root: Path, name: str) -> list[str]:
    path = read(root, "corpora", name).path / "documents.jsonl.zst"
    data = zstandard.ZstdDecompressor().stream_reader(path.read_bytes(), read_across_frames=True).read()
    return [json.loads(line)["text"] for line in data.decode().split("\n") if line]


@pytest.mark.parametrize("name", ["novel", "hostile"])
def test_numbers_equal_the_manifest_and_a_count_of_the_documents(store: Path, name: str) -> None:
    artifact, texts = read(store, "corpora", name), published_texts(store, name)
    numbers, counts = corpus.collect(artifact), artifact.manifest.counts
    characters = Counter("".join(texts))
    assert numbers.histogram == characters
    assert numbers.characters == counts["characters"] == characters.total()
    assert numbers.documents
    assert numbers.sentences
    assert numbers.measured == numbers.documents.total == sum(numbers.documents.counts) == counts["documents"]
    assert numbers.sentences.total == counts["sentences"]
    lengths = sorted(map(len, texts))
    assert numbers.documents.percentiles["min"] == lengths[0]
    assert numbers.documents.percentiles["max"] == lengths[-1]
    assert sum(script.characters for script in numbers.scripts) == characters.total()
    assert sum(script.kinds for script in numbers.scripts) == len(characters)
    han = next((script.characters for script in numbers.scripts if script.name == "Han"), 0)
    assert han == sum(
        count
        for character, count in characters.items()
        if re.match("[㐀-䶿一-鿿豈-\ufaff\U00020000-\U0003ffff]", character)
    )
    assert dict(numbers.marks).get("，", 0) == characters["，"]


def test_page_shows_the_counts_of_the_manifest(store: Path) -> None:
    artifact = read(store, "corpora", "novel")
    page = reports.render("novel", [artifact], Language("en")).decode()
    for name, unit in (("documents", "documents"), ("characters", "characters"), ("sentences", "sentences")):
        assert f"<dt>{unit}</dt><dd>{artifact.manifest.counts[name]:,}</dd>" in page
    tally = artifact.manifest.ledger["characters"]
    for rule, count in tally["dropped"].items():
        assert re.search(rf">{rule}</td><td class=\"number\">−{count:,}<", page), rule


def test_bars_name_the_lengths_that_they_count() -> None:
    chart = charts.histogram((59, 60, 1000, 1026), (1, 2, 3), "label")
    assert re.findall("<title>(.*?)</title>", chart) == ["59: 1", "60–999: 2", "1,000–1,025: 3"]


def test_unchanged_characters_are_not_called_documents(tmp_path: Path) -> None:
    source = tmp_path / "clean.txt"
    source.write_text("All of this text stays as it is.\n")
    run(tmp_path / "store", "clean", source)
    artifact = read(tmp_path / "store", "corpora", "clean")
    assert not artifact.manifest.ledger["characters"]["dropped"]
    page = reports.render("clean", [artifact], Language("en")).decode()
    characters = artifact.manifest.counts["characters"]
    assert "No document was dropped, of 1." in page
    assert f"No character changed, of {characters}." in page


def test_bins_hold_every_number_once() -> None:
    frequencies = {length: 1 + length % 3 for length in (0, 1, 2, 5, 9, 10, 11, 40, 700, 701, 90_000)}
    for scale in (1, 1000):
        bins = bins_of({length * scale: count for length, count in frequencies.items()})
        assert bins
        assert sum(bins.counts) == bins.total == sum(frequencies.values())
        for low, high, count in zip(bins.edges, bins.edges[1:], bins.counts, strict=False):
            assert count == sum(n for length, n in frequencies.items() if low <= length * scale < high)
    assert bins_of({}) is None


def test_corpus_above_the_limit_is_sampled_and_says_so(store: Path) -> None:
    artifact = read(store, "corpora", "novel")
    numbers = corpus.collect(artifact, max_characters=5_000)
    assert 0 < numbers.measured < artifact.manifest.counts["documents"]
    assert corpus.collect(artifact, max_characters=5_000) == numbers


def test_examples_of_rules_come_from_the_unchanged_sources_only(store: Path, tmp_path: Path) -> None:
    changes, is_unchanged = changes_of_rules(read(store, "corpora", "novel"))
    assert is_unchanged
    removed = [(before, after) for before, after in changes["boilerplate"] if "且听下回分解" in before]
    assert removed
    assert not any("且听下回分解" in after for _, after in removed)
    book = tmp_path / "book.txt"
    book.write_text("第一回　起\n话说天下大势 。分久必合！\n", encoding="utf-8")
    root = tmp_path / "artifacts"
    run(root, "clean", book)
    assert changes_of_rules(read(root, "corpora", "book"))[1]
    book.write_text("第一回　起\n话说天下小势 。分久必合！\n", encoding="utf-8")
    assert changes_of_rules(read(root, "corpora", "book")) == ({}, False)


def test_notes_of_readers_are_not_repeated_by_the_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "".join(f"{number},却说阿渊携砚来到江边。\n" for number in range(9))
    (tmp_path / "talk.csv").write_text(f"n,留言\n{rows}", encoding="utf-8")
    root = tmp_path / "artifacts"
    run(root, "clean", tmp_path / "talk.csv")
    caplog.clear()
    assert changes_of_rules(read(root, "corpora", "talk"))[1]
    assert not caplog.records


def test_rejects_are_shown_by_reason_with_their_lines(store: Path) -> None:
    rejects = corpus.collect(read(store, "corpora", "hostile")).rejects
    assert [excerpt for _, excerpt in rejects["too-short"]] == list(HOSTILE[: corpus.EXAMPLES])
    ((location, excerpt),) = next(rows for reason, rows in rejects.items() if reason != "too-short")
    assert location.endswith(":157")
    assert excerpt.startswith("{broken <i>")


def test_damaged_report_is_bad_data(store: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("第一回　起\n话说天下大势。\n", encoding="utf-8")
    run(tmp_path / "artifacts", "clean", book)
    artifact = read(tmp_path / "artifacts", "corpora", "book")
    artifact.file("report.json").write_text('{"sentences": []}')
    with pytest.raises(BadData, match="not the report of a corpus"):
        corpus.collect(artifact)
