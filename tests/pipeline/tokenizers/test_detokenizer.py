"""The incremental detokenizer emits the text and never part of a character."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tokenizers
from pipeline.tokenizers import Characters, IncrementalDetokenizer, Integers, Tokenizer
from pipeline.tokenizers import stage as tokenizers_stage

TEXT = "话说天下大势，分久必合。The old ferryman 合久必分！\n" * 20


@functools.cache
def train_tokenizer_of(folder: Path, kind: str) -> Tokenizer:
    text = folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    sentences = tokenizers_stage.find_sentences(folder, [str(text)])
    return tokenizers.find(folder, tokenizers_stage.train(folder, kind, sentences, kind, 284).artifact.ref)[0]


@pytest.fixture(scope="module", params=["bpe", "unigram", "char", "r50k_base"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "r50k_base":
        request.getfixturevalue("shared")
        return tokenizers.Tiktoken.named("r50k_base")
    if request.param == "char":
        return Characters("".join(sorted(set(TEXT))), "char")
    return train_tokenizer_of(tmp_path_factory.mktemp("tokenizer"), request.param)


def detokenize(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    unfolding = IncrementalDetokenizer(tokenizer)
    return [unfolding.add(token) for token in ids]


@settings(max_examples=200)
@given(st.text(alphabet=st.one_of(st.sampled_from(TEXT), st.characters(exclude_categories=["Cs"]))))
def test_emitted_pieces_concatenate_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert "".join(detokenize(tokenizer, ids)) == tokenizer.decode(ids)


@settings(max_examples=200)
@given(st.data())
def test_no_sequence_of_ids_gives_a_replacement_character(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    assert "\ufffd" not in "".join(detokenize(tokenizer, ids))


def test_character_of_several_tokens_is_emitted_with_the_last(shared: Path) -> None:
    tokenizer = tokenizers.Tiktoken.named("r50k_base")
    character = next(han for han in map(chr, range(0x4E00, 0x9FFF)) if len(tokenizer.encode(han)) == 3)
    assert detokenize(tokenizer, tokenizer.encode(character)) == ["", "", character]


def test_continuation_keeps_its_leading_space(shared: Path) -> None:
    tokenizer = tokenizers.Tiktoken.named("r50k_base")
    assert IncrementalDetokenizer(tokenizer, 5).add(tokenizer.encode(" world")[0]) == " world"
    assert IncrementalDetokenizer(Integers(10), 5).add(6) == " 6"
    assert IncrementalDetokenizer(Integers(10)).add(6) == "6"


def test_end_of_text_adds_nothing(tokenizer: Tokenizer) -> None:
    assert detokenize(tokenizer, [tokenizer.end_of_text]) == [""]
