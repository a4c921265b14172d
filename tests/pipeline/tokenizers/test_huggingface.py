"""tokenizer.json: `tokenizers` gives the same ids for every text."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadConfig, BadData
from pipeline.readers import readers
from pipeline.runtime.ledger import Ledger
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import (
    Characters,
    Integers,
    SentencePiece,
    Tiktoken,
    Tokenizer,
    bpe_merges,
    huggingface,
    open_folder,
    require_same_ids,
    tokenizer_json,
)
from tests.pipeline.tokenizers.test_tokenizers import AS_EVER, BOOK, ENCODINGS_HERE, TRICKY, model_of, trained

__all__ = ["trained"]  # a fixture

KINDS = ["bpe", "char", *ENCODINGS_HERE]
PREFIX = "bpe with a dummy prefix"
PILE = ["pile_train_00.jsonl.zst", "pile_train_01.jsonl.zst", "pile_val.jsonl.zst"]
NOVELS = ["shuihu_raw.txt", "song_ci.txt", "bench/shuihu_train.txt", "bench/shuihu_val.txt"]
POEMS = ["bench/songci_train.txt", "bench/songci_val.txt", "tang_poems.jsonl.zst"]
POEMS += [f"chinese-poetry/{name}.json" for name in ("ci.song.0", "lunyu", "poet.song.0")]
_EACH = 60_000  # characters of each file; the ids of the complete files were compared by hand


@pytest.fixture(scope="session", params=[*KINDS, PREFIX])
def pair(request: pytest.FixtureRequest, trained: Callable[[str], Artifact]) -> tuple[Tokenizer, Any]:
    """A tokenizer of ours, and its tokenizer.json opened with `tokenizers`."""
    if request.param in ENCODINGS_HERE:
        request.getfixturevalue("shared")
        tokenizer: Tokenizer = Tiktoken.named(request.param)
    elif request.param == PREFIX:
        tokenizer = SentencePiece(model_of(BOOK, 2600, **{**AS_EVER, "add_dummy_prefix": True}), "foreign")
    else:
        tokenizer = open_folder(trained(request.param).path)
    return tokenizer, opened(tokenizer_json(tokenizer, ()))


def opened(data: bytes) -> Any:
    from tokenizers import Tokenizer as HFTokenizer

    theirs = HFTokenizer.from_str(data.decode())
    theirs.encode_special_tokens = True
    return theirs


@pytest.mark.parametrize("name", [*PILE, *NOVELS, *POEMS])
def test_real_texts_have_the_same_ids(pair: tuple[Tokenizer, Any], shared: Path, name: str) -> None:
    tokenizer, theirs = pair
    for text in texts(shared / "data" / name):
        assert theirs.encode(text).ids == tokenizer.encode(text), text[:100]


@functools.cache
def texts(path: Path) -> list[str]:
    """Return the beginnings of a file's documents, or the lines of a novel."""
    merge_list, size = [], 0
    for document in readers.read_documents(path, Ledger(), print):
        for text in document.text.split("\n") if path.suffix == ".txt" else [document.text]:
            merge_list.append(text[: _EACH - size])
            size += len(merge_list[-1])
            if size == _EACH:
                return merge_list
    return merge_list


@pytest.mark.parametrize(
    "text", [*TRICKY, BOOK, "ababa" * 9, "aaaaaaa", "한국어 e\u0301 İß", " \n \r\n\n  x\t\t", " ", "  ", ""]
)
def test_hard_texts_have_the_same_ids_and_decode_back(pair: tuple[Tokenizer, Any], text: str) -> None:
    tokenizer, theirs = pair
    ids = tokenizer.encode(text)
    assert theirs.encode(text).ids == ids
    if tokenizer.unknown_id not in ids:
        assert theirs.decode(ids) == tokenizer.decode(ids) == text


def test_end_of_text_is_special_and_vocabulary_size_equal(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, theirs = pair
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    theirs.encode_special_tokens = False
    assert theirs.encode("a<|endoftext|>").ids[-1] == tokenizer.end_of_text
    theirs.encode_special_tokens = True
    assert theirs.decode([tokenizer.end_of_text]) == ""


def test_integers_become_words(tmp_path: Path) -> None:
    theirs = opened(tokenizer_json(Integers(40), ["1, 2,3"]))
    assert theirs.encode("1, 2 39").ids == [1, 2, 39]
    assert theirs.decode([1, 2, 39]) == "1 2 39"


def test_the_same_tokenizer_gives_the_same_bytes(trained: Callable[[str], Artifact]) -> None:
    first, second = (tokenizer_json(open_folder(trained("bpe").path), ()) for _ in range(2))
    assert first == second


def test_unigram_model_is_refused(trained: Callable[[str], Artifact]) -> None:
    with pytest.raises(BadConfig, match="unigram") as refused:
        tokenizer_json(open_folder(trained("unigram").path), ())
    assert "--kind bpe" in refused.value.hint


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"byte_fallback": False}, "without byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises"),
        ({"remove_extra_whitespaces": True}, "normalises"),
        ({"treat_whitespace_as_suffix": True, "add_dummy_prefix": True}, "normalises"),
    ],
)
def test_model_that_cannot_be_exact_is_refused(settings: dict[str, Any], why: str) -> None:
    model = SentencePiece(model_of(BOOK, 2600, **{**AS_EVER, **settings}), "foreign")
    with pytest.raises(BadConfig, match=why):
        tokenizer_json(model, ())


def test_difference_error_names_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Characters.encode
    monkeypatch.setattr(Characters, "encode", lambda self, text: [2] if text == "c" else real(self, text))
    with pytest.raises(BadData, match="'c' is encoded differently"):
        tokenizer_json(Characters("abc", "small"), ())


def test_leftmost_merge_of_a_piece_comes_first() -> None:
    pieces = ["a", "b", "ab", "ba", "aba", "ababa"]
    merge_list = bpe_merges({piece: rank for rank, piece in enumerate(pieces)})
    assert merge_list[:2] == [("a", "b"), ("b", "a")]
    assert merge_list[2:4] == [("ab", "a"), ("a", "ba")], "of `ab a ba` the first two are merged"
    assert merge_list[4:] == [("ab", "aba"), ("aba", "ba")]


def test_vocabulary_of_another_tokenizer_raises_bad_data(trained: Callable[[str], Artifact]) -> None:
    tokenizer = open_folder(trained("bpe").path)
    vocabulary = json.loads(tokenizer_json(tokenizer, ()))["model"]["vocab"]
    require_same_ids(tokenizer, vocabulary, "vocab.json")
    first, second = list(vocabulary)[500:502]
    swapped = {**vocabulary, first: vocabulary[second], second: vocabulary[first]}
    for wrong in (swapped, {name: number for name, number in vocabulary.items() if name != first}):
        with pytest.raises(BadData, match=r"vocab\.json"):
            require_same_ids(tokenizer, wrong, "vocab.json")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(r"\p{N}{1,3}+|\s++$|\s", r"\p{N}{1,3}|\s++\z|\s"), (r" ?\p{L}++| ?[^\s]+", r" ?\p{L}++| ?[^\s]+")],
)
def test_split_pattern_translates_to_oniguruma(ours: str, theirs: str) -> None:
    assert huggingface.onig(ours) == theirs
