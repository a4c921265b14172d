"""Baselines equal numbers computed by hand, or by a slow reference."""

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

from model.training.baselines import Baselines, bigram, compute_baselines, ngram, unigram
from model.training.evaluate import ValidationSet
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Characters, Integers, Tokenizer
from pipeline.tokens.store import TokenArray, TokenStore

NOVEL = Path(__file__).resolve().parents[3] / "pipeline" / "sample" / "yanshan.txt"
SIZE = 5


def store(tokenizer: Tokenizer, train: list[int], val: list[int]) -> TokenStore:
    splits = [TokenArray((np.array(ids, "<u2"),)) for ids in (train, val)]
    return TokenStore(cast(Artifact, None), tokenizer, splits[0], splits[1])


def baselines_of(tokenizer: Tokenizer, train: list[int], val: list[int]) -> Baselines:
    text = tokenizer.decode(val[1:])
    return compute_baselines(store(tokenizer, train, val), ValidationSet(np.array(val), len(text), len(text.encode())))


def encode_novel() -> tuple[Characters, list[int], list[int]]:
    text = NOVEL.read_text(encoding="utf-8")
    tokenizer = Characters("".join(sorted({*text})), "novel")
    ids = tokenizer.encode(text)
    return tokenizer, ids[: -len(ids) // 10], ids[-len(ids) // 10 :]


def test_unigram_counts_each_id_plus_one() -> None:
    assert unigram(np.array([0, 1, 0, 1, 0, 2]), 4).tolist() == [4 / 10, 3 / 10, 2 / 10, 1 / 10]


def test_bigram_discounts_pairs_for_unseen_ones() -> None:
    train = np.array([0, 1, 0, 1, 0, 2])  # 0 1 and 1 0 twice, 0 2 once: D = 2 / (2 + 2 * 3) = 1 / 4
    unigrams = unigram(train, 3)  # 4/9, 3/9, 2/9
    after_0 = bigram(train, np.zeros(3, int), np.arange(3), unigrams)
    assert after_0 == pytest.approx([0.5 / 3 * 4 / 9, 1.75 / 3 + 0.5 / 3 * 3 / 9, 0.75 / 3 + 0.5 / 3 * 2 / 9])
    after_2 = bigram(train, np.full(3, 2), np.arange(3), unigrams)
    assert after_2 == pytest.approx(unigrams), "2 is never followed by anything"


def slow_bigram(train: list[int], previous: int, target: int, unigrams: list[float]) -> float:
    pairs = Counter(pairwise(train))
    once, twice = (sum(count == times for count in pairs.values()) for times in (1, 2))
    discount = (once + 1) / ((once + 1) + 2 * (twice + 1))
    successors = [count for pair, count in pairs.items() if pair[0] == previous]
    if not successors:
        return unigrams[target]
    discounted = max(pairs[previous, target] - discount, 0)
    return (discounted + discount * len(successors) * unigrams[target]) / sum(successors)


@given(st.lists(st.integers(0, SIZE - 1), max_size=60), st.integers(SIZE, 70_000))
def test_bigram_equals_a_slow_reference(train: list[int], size: int) -> None:
    unigrams = unigram(np.array(train, int), size)
    previous, targets = np.divmod(np.arange(SIZE * SIZE), SIZE)
    expected = [
        slow_bigram(train, first, second, unigrams.tolist()) for first, second in zip(previous, targets, strict=True)
    ]
    assert bigram(np.array(train, int), previous, targets, unigrams) == pytest.approx(expected)


@given(st.lists(st.integers(0, SIZE - 1), max_size=60), st.integers(0, SIZE - 1))
def test_probabilities_sum_to_one(train: list[int], previous: int) -> None:
    unigrams = unigram(np.array(train, int), SIZE)
    after = bigram(np.array(train, int), np.full(SIZE, previous), np.arange(SIZE), unigrams)
    assert unigrams.sum() == pytest.approx(1)
    assert after.sum() == pytest.approx(1)
    assert after.min() > 0


def test_losses_are_means_over_all_ids_but_the_first() -> None:
    baselines = baselines_of(Integers(4), [0, 1, 0, 1, 0, 2], [3, 0, 1])
    assert baselines.uniform == math.log(4)
    assert baselines.unigram == pytest.approx(-(math.log(4 / 10) + math.log(3 / 10)) / 2)
    chances = (4 / 10, 1.75 / 3 + 0.5 / 3 * 3 / 10)  # 3 was never seen, so 0 after it is as likely as alone
    assert baselines.bigram == pytest.approx(-(math.log(chances[0]) + math.log(chances[1])) / 2)
    assert (baselines.tokens, baselines.characters) == (2, 1)


def test_zstd_compresses_the_validation_text_alone() -> None:
    tokenizer, train, val = encode_novel()
    baselines = baselines_of(tokenizer, train, val)
    text = tokenizer.decode(val[1:])
    packed = len(zstandard.ZstdCompressor(level=19).compress(text.encode()))
    assert baselines.bits_per_char(baselines.zstd) == pytest.approx(8 * packed / len(text), rel=0.01)
    assert baselines_of(tokenizer, train[:100], val).zstd == baselines.zstd


def test_nats_and_bits_convert_both_ways() -> None:
    baselines = Baselines(3.0, 2.0, 1.0, 1.0, 1.0, tokens=100, characters=150)
    assert baselines.bits_per_char(3 * math.log(2)) == pytest.approx(2)
    assert baselines.loss(2) == pytest.approx(3 * math.log(2))


def test_unknown_characters_cost_bits_in_every_baseline() -> None:
    tokenizer, train, val = encode_novel()
    without_unknown = baselines_of(tokenizer, train, val)
    text = tokenizer.decode(val[1:])
    validation = ValidationSet(np.array(val), len(text), len(text.encode()), unknown=50)
    baselines = compute_baselines(store(tokenizer, train, val), validation)
    extra_bits = 50 * math.log2(1_112_064) / len(text)
    assert baselines.bits_per_char(baselines.bigram) == pytest.approx(
        without_unknown.bits_per_char(without_unknown.bigram) + extra_bits
    )
    for name in ("zstd", "ngram"):
        assert baselines.bits_per_char(getattr(baselines, name)) == pytest.approx(
            without_unknown.bits_per_char(getattr(without_unknown, name)) + extra_bits
        )
    assert baselines.loss(baselines.bits_per_char(2.5)) == pytest.approx(2.5)


def test_richer_baselines_have_lower_losses_on_a_novel() -> None:
    baselines = baselines_of(*encode_novel())
    assert baselines.uniform > baselines.unigram > baselines.bigram > 2


def test_training_split_may_have_any_dtype_and_length() -> None:
    tokenizer = Integers(70_000)
    wide = TokenArray((np.array([69_999, 1, 69_999, 1], "<u4"),))
    baselines = compute_baselines(
        TokenStore(cast(Artifact, None), tokenizer, wide, wide), ValidationSet(np.array([69_999, 1]), 1, 1)
    )
    assert baselines.bigram < baselines.unigram < baselines.uniform
    for train in ([], [3]):
        baselines = baselines_of(Integers(4), train, [1, 2, 3])
        assert baselines.bigram == baselines.unigram


def test_a_million_tokens_take_less_than_two_seconds() -> None:
    rng = np.random.default_rng(1)
    train = np.minimum(rng.zipf(1.2, 1_000_000), 49_999)
    start = time.process_time()
    bigram(train, train[: 1 << 16], train[1 : (1 << 16) + 1], unigram(train, 50_000))
    assert time.process_time() - start < 2, "0.4 s on an idle core"


def test_n_grams_of_half_a_million_characters_take_less_than_three_seconds() -> None:
    codes = np.minimum(np.random.default_rng(1).zipf(1.5, 500_000), 5_000).astype("<u4")
    start = time.process_time()
    ngram(codes, 400_000, 1e-6)
    assert time.process_time() - start < 3, "0.9 s on a busy core"


def slow_ngrams(codes: list[int], unseen: float, order: int) -> list[dict[int, float]]:
    """Return the probabilities of all characters before each position, by counting in dictionaries."""
    padded, size = [-1] * order + codes, max(codes, default=0) + 1
    counts = [Counter[tuple[int, ...]]() for _ in range(order)]
    discounts, ends = discounts_of(padded, order), range(order, len(padded))
    rows = []
    for end in ends:
        row = dict.fromkeys(range(size), unseen)
        for n, table in enumerate(counts):
            context = tuple(padded[end - n : end])
            seen = {gram[-1]: count for gram, count in table.items() if gram[:-1] == context}
            total = sum(seen.values())
            mass = sum(discounts[n][min(count, 3)] for count in seen.values())
            for code in row if total else ():
                count = seen.get(code, 0)
                row[code] = (count - discounts[n][min(count, 3)] + mass * row[code]) / total
        rows.append(row)
        count_ngrams(counts, padded, end)
    return rows


def count_ngrams(counts: list[Counter[tuple[int, ...]]], padded: list[int], end: int) -> None:
    """Count the longest n-gram that ends here, and shorter ones until one was not new."""
    for n in range(len(counts) - 1, -1, -1):
        gram = tuple(padded[end - n : end + 1])
        counts[n][gram] += 1
        if counts[n][gram] > 1:
            break


def discounts_of(padded: list[int], order: int) -> list[list[float]]:
    """Return the discounts of each length, from the counts of the complete text (Chen & Goodman 1998)."""
    counts = [Counter[tuple[int, ...]]() for _ in range(order)]
    for end in range(order, len(padded)):
        count_ngrams(counts, padded, end)
    result = []
    for table in counts:
        one, two, three, four = (sum(count == times for count in table.values()) + 1 for times in (1, 2, 3, 4))
        rate = one / (one + 2 * two)
        values = (1 - 2 * rate * two / one, 2 - 3 * rate * three / two, 3 - 4 * rate * four / three)
        result.append([0.0, *(min(max(value, 0.05), n + 0.95) for n, value in enumerate(values))])
    return result


@given(st.lists(st.integers(0, SIZE - 1), min_size=2, max_size=60), st.integers(1, 4), st.data())
def test_ngrams_equal_a_slow_reference_whose_probabilities_sum_to_one(
    codes: list[int], order: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(codes) - 1))
    rows = slow_ngrams(codes, 1 / (max(codes) + 1), order)
    assert [sum(row.values()) for row in rows] == pytest.approx([1.0] * len(rows))
    expected = [row[code] for row, code in zip(rows, codes, strict=True)][start:]
    assert ngram(np.array(codes, "<u4"), start, 1 / (max(codes) + 1), order) == pytest.approx(expected)


def test_ngrams_score_a_novel_better_than_pairs_of_its_characters() -> None:
    baselines = baselines_of(*encode_novel())
    assert baselines.ngram < baselines.bigram


def test_ngrams_of_a_validation_text_without_characters_cost_nothing() -> None:
    tokenizer, train, _ = encode_novel()
    assert baselines_of(tokenizer, train, [tokenizer.end_of_text, tokenizer.end_of_text]).ngram == 0
