"""What needs no network is computed right: by hand where it is small, by counting slowly where it is not."""

from __future__ import annotations

import math
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from model.training.baselines import References, bigram, references, unigram
from model.training.evaluate import ValidationSet
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Characters, Integers, Tokenizer
from pipeline.tokens.store import TokenArray, TokenStore

NOVEL = Path(__file__).resolve().parents[3] / "pipeline" / "sample" / "yanshan.txt"
SIZE = 5


def store(tokenizer: Tokenizer, train: list[int], val: list[int]) -> TokenStore:
    arrays = (TokenArray((np.array(ids, "<u2"),)) for ids in (train, val))
    return TokenStore(cast(Artifact, None), tokenizer, *arrays)


def refer(tokenizer: Tokenizer, train: list[int], val: list[int]) -> References:
    text = tokenizer.decode(val[1:])
    return references(store(tokenizer, train, val), ValidationSet(np.array(val), len(text), len(text.encode())))


def of_novel() -> tuple[Characters, list[int], list[int]]:
    text = NOVEL.read_text(encoding="utf-8")
    tokenizer = Characters("".join(sorted({*text})), "novel")
    ids = tokenizer.encode(text)
    return tokenizer, ids[: -len(ids) // 10], ids[-len(ids) // 10 :]


def test_ids_are_as_likely_as_they_were_often_and_once_more() -> None:
    assert unigram(np.array([0, 1, 0, 1, 0, 2]), 4).tolist() == [4 / 10, 3 / 10, 2 / 10, 1 / 10]


def test_pairs_give_a_share_of_one_to_those_that_never_came() -> None:
    train = np.array([0, 1, 0, 1, 0, 2])  # 0 1 and 1 0 twice, 0 2 once: D = 2 / (2 + 2 * 3) = 1 / 4
    alone = unigram(train, 3)  # 4/9, 3/9, 2/9
    after_0 = bigram(train, np.zeros(3, int), np.arange(3), alone)
    assert after_0 == pytest.approx([0.5 / 3 * 4 / 9, 1.75 / 3 + 0.5 / 3 * 3 / 9, 0.75 / 3 + 0.5 / 3 * 2 / 9])
    after_2 = bigram(train, np.full(3, 2), np.arange(3), alone)
    assert after_2 == pytest.approx(alone), "nothing ever came after it"


def slow_bigram(train: list[int], previous: int, following: int, alone: list[float]) -> float:
    pairs = Counter(pairwise(train))
    once, twice = (sum(count == times for count in pairs.values()) for times in (1, 2))
    discount = (once + 1) / ((once + 1) + 2 * (twice + 1))
    after = [count for pair, count in pairs.items() if pair[0] == previous]
    if not after:
        return alone[following]
    kept = max(pairs[previous, following] - discount, 0)
    return (kept + discount * len(after) * alone[following]) / sum(after)


@given(st.lists(st.integers(0, SIZE - 1), max_size=60), st.integers(SIZE, 70_000))
def test_pairs_counted_all_at_once_are_those_counted_one_by_one(train: list[int], size: int) -> None:
    alone = unigram(np.array(train, int), size)
    previous, following = np.divmod(np.arange(SIZE * SIZE), SIZE)
    expected = [
        slow_bigram(train, before, after, alone.tolist()) for before, after in zip(previous, following, strict=True)
    ]
    assert bigram(np.array(train, int), previous, following, alone) == pytest.approx(expected)


@given(st.lists(st.integers(0, SIZE - 1), max_size=60), st.integers(0, SIZE - 1))
def test_the_chances_of_all_ids_make_one(train: list[int], previous: int) -> None:
    alone = unigram(np.array(train, int), SIZE)
    after = bigram(np.array(train, int), np.full(SIZE, previous), np.arange(SIZE), alone)
    assert alone.sum() == pytest.approx(1)
    assert after.sum() == pytest.approx(1)
    assert after.min() > 0


def test_losses_are_means_over_all_ids_but_the_first() -> None:
    found = refer(Integers(4), [0, 1, 0, 1, 0, 2], [3, 0, 1])
    assert found.uniform == math.log(4)
    assert found.unigram == pytest.approx(-(math.log(4 / 10) + math.log(3 / 10)) / 2)
    chances = (4 / 10, 1.75 / 3 + 0.5 / 3 * 3 / 10)  # 3 was never seen, so 0 after it is as likely as alone
    assert found.bigram == pytest.approx(-(math.log(chances[0]) + math.log(chances[1])) / 2)
    assert (found.tokens, found.characters) == (2, 1)


def test_zstd_reads_the_validation_text_alone() -> None:
    tokenizer, train, val = of_novel()
    found = refer(tokenizer, train, val)
    text = tokenizer.decode(val[1:])
    packed = len(zstandard.ZstdCompressor(level=19).compress(text.encode()))
    assert found.bits_per_char(found.zstd) == pytest.approx(8 * packed / len(text), rel=0.01)
    assert refer(tokenizer, train[:100], val).zstd == found.zstd


def test_nats_become_bits_of_the_text() -> None:
    found = References(3.0, 2.0, 1.0, 1.0, tokens=100, characters=150)
    assert found.bits_per_char(3 * math.log(2)) == pytest.approx(2)
    assert found.loss(2) == pytest.approx(3 * math.log(2))


def test_what_unknown_characters_cost_is_in_all_bits() -> None:
    tokenizer, train, val = of_novel()
    known = refer(tokenizer, train, val)
    text = tokenizer.decode(val[1:])
    chosen = ValidationSet(np.array(val), len(text), len(text.encode()), unknown=50)
    found = references(store(tokenizer, train, val), chosen)
    more = 50 * math.log2(0x110000) / len(text)
    assert found.bits_per_char(found.bigram) == pytest.approx(known.bits_per_char(known.bigram) + more)
    assert found.bits_per_char(found.zstd) == pytest.approx(known.bits_per_char(known.zstd) + more)
    assert found.loss(found.bits_per_char(2.5)) == pytest.approx(2.5)


def test_who_knows_more_of_a_novel_loses_less() -> None:
    found = refer(*of_novel())
    assert found.uniform > found.unigram > found.bigram > 2


def test_a_training_split_of_any_dtype_and_length_will_do() -> None:
    tokenizer = Integers(70_000)
    wide = TokenArray((np.array([69_999, 1, 69_999, 1], "<u4"),))
    found = references(
        TokenStore(cast(Artifact, None), tokenizer, wide, wide), ValidationSet(np.array([69_999, 1]), 1, 1)
    )
    assert found.bigram < found.unigram < found.uniform
    for train in ([], [3]):
        few = refer(Integers(4), train, [1, 2, 3])
        assert few.bigram == few.unigram


def test_a_million_tokens_take_less_than_a_second() -> None:
    rng = np.random.default_rng(1)
    train = np.minimum(rng.zipf(1.2, 1_000_000), 49_999).astype("<u2")
    made = TokenStore(cast(Artifact, None), Integers(50_000), TokenArray((train,)), TokenArray((train,)))
    start = time.process_time()
    references(made, ValidationSet(train[: 1 << 16].astype(np.int64), 1, 1))
    assert time.process_time() - start < 2, "it is 0.4 s on an idle core"
