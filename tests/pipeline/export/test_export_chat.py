"""Exports of conversations: their messages, and their mask where a format has a place for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BadData
from pipeline.export import arrays
from pipeline.export import corpus as corpus_export
from pipeline.export import export as tokens_export
from pipeline.store.artifact import Artifact
from pipeline.tokens.store import open_store
from tests.pipeline.clean.chat.test_chat import clean, normalised
from tests.pipeline.clean.test_stage import entries
from tests.pipeline.tokens.test_conversations import corpus_of, inputs_of, run
from tests.support.conversations import FORMS, conversations_for


@pytest.fixture
def tokens(tmp_path: Path) -> Artifact:
    corpus_of(tmp_path, "openai", conversations_for("openai", 100))
    return run(tmp_path, inputs_of(tmp_path, "chat")).artifact


def test_datatrove_reads_and_merges_the_mask(tokens: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    from datatrove.pipeline.tokens import DocumentTokenizerMerger

    exported = tokens_export.export(tokens, "datatrove", tmp_path / "out", verify=True)
    assert exported.warning == ""
    store = open_store(tokens)
    assert store.val_mask is not None
    losses = np.fromfile(exported.path / "some_val.ds.loss", bool)
    assert losses.tolist() == store.val_mask.read(0, len(store.val)).astype(bool).tolist()
    merger = DocumentTokenizerMerger(
        str(exported.path), str(tmp_path / "merged"), "all", seed=1, progress=False, save_loss_metadata=True
    )
    merger.run(None)
    counts = tokens.manifest.counts
    merged = np.fromfile(tmp_path / "merged" / "000_all.ds.loss", bool)
    assert (len(merged), merged.sum()) == (counts["tokens"], counts["train_loss_tokens"] + counts["val_loss_tokens"])


def test_mask_that_differs_is_found_when_read_back(
    tokens: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = arrays.write_ids

    def write_wrong(path: Path, ids: Iterable[np.ndarray], header: bytes = b"") -> None:
        write(path, ids, header)
        if path.suffix == ".loss":
            path.write_bytes(bytes(path.stat().st_size))

    monkeypatch.setattr("pipeline.export.arrays.write_ids", write_wrong)
    with pytest.raises(BadData, match=r"ds\.loss.*differs from the mask"):
        tokens_export.export(tokens, "datatrove", tmp_path / "out", verify=True)


def test_format_without_a_mask_warns(tokens: Artifact, tmp_path: Path) -> None:
    exported = tokens_export.export(tokens, "nanogpt", tmp_path / "out")
    assert "no place for the mask" in exported.warning


@pytest.mark.parametrize("form", ["openai", "pair"])
@pytest.mark.parametrize("to", ["jsonl", "parquet", "hf"])
def test_exported_corpus_is_cleaned_to_the_same_messages(tmp_path: Path, form: str, to: str) -> None:
    many = conversations_for(form, 40)
    corpus = corpus_of(tmp_path, form, many)
    exported = corpus_export.export(corpus, to, tmp_path / "out", verify=True)
    paths = [exported.path / name for name in exported.files if name != "README.md"]
    again = clean(tmp_path, *paths, name="again")
    field = "messages" if form == "openai" else "rejected"
    assert [entry[field] for entry in entries(again)] == [entry[field] for entry in entries(corpus)]
    assert len(entries(again)) == len(list(map(FORMS[form], map(normalised, many))))
