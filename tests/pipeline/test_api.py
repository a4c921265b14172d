"""The Python API of the pipeline: the messages of conversations, and engines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline import api
from pipeline.errors import BadConfig
from pipeline.runtime import engines
from tests.support.engines import Threads, opening


def write_lines(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records), encoding="utf-8")
    return path


def messages(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)]


def test_documents_of_a_corpus_of_conversations_have_their_messages(tmp_path: Path) -> None:
    talks = [messages("二加二？", "四。"), messages("Two and two?", "Four.", "And three?", "Seven.")]
    path = write_lines(tmp_path / "talks.jsonl", [{"messages": talk} for talk in talks])
    api.clean([path], "talks", root=tmp_path, profile="chat")
    documents = list(api.load_corpus("talks", tmp_path))
    assert [document.messages for document in documents] == talks
    assert [(document.chosen, document.rejected) for document in documents] == [([], [])] * 2


def test_documents_of_a_corpus_of_pairs_have_both_answers(tmp_path: Path) -> None:
    chosen, rejected = messages("Two and two?", "Four."), messages("Two and two?", "Five.")
    path = write_lines(tmp_path / "pairs.jsonl", [{"chosen": chosen, "rejected": rejected}])
    api.clean([path], "pairs", root=tmp_path, profile="chat")
    (document,) = api.load_corpus("pairs", tmp_path)
    assert (document.messages, document.chosen, document.rejected) == ([], chosen, rejected)


def test_an_engine_makes_the_same_corpus_and_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def engine_named(name: str, cores: int) -> engines.OpenEngine | None:
        asked.append((name, cores))
        return opening(Threads(2)) if name == "ray" else None

    monkeypatch.setattr(engines, "engine_named", engine_named)
    texts = [tmp_path / f"{name}.txt" for name in "ab"]
    for path in texts:
        path.write_text(f"The inkstone {path.stem}.\n" * 90, encoding="utf-8")
    built = []
    for engine in ("local", "ray"):
        root = tmp_path / engine
        corpus = api.clean(texts, "book", root=root, engine=engine)
        api.train_tokenizer("book", kind="char", root=root)
        tokens = api.tokenize(["book"], "book", root=root, engine=engine)
        built.append((corpus.digest, tokens.train.read(0, len(tokens.train))))
    assert built[0][0] == built[1][0]
    assert np.array_equal(built[0][1], built[1][1])
    assert asked == [("local", 1), ("local", 1), ("ray", 1), ("ray", 1)]


def test_unknown_engine_is_refused(tmp_path: Path) -> None:
    for stage in (api.clean, api.tokenize):
        with pytest.raises(BadConfig, match="unknown engine 'dask'"):
            stage(["book"], "book", root=tmp_path, engine="dask")  # type: ignore[operator]
