"""Probabilities by counts equal a slow reference; evaluation, scoring and sampling use the same mixture."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.generation.engine import Engine, TokenSequence
from model.generation.sampling import SampleOptions
from model.generation.scoring import score_prompts
from model.network.gpt import GPT
from model.network.ngrams import NGrams, mixed
from model.training.evaluate import ValidationSet, evaluate
from pipeline.tokenizers import Integers
from tests.support.networks import SMALL, perturbed_network

SIZE = 5
Gram = tuple[int, ...]
IDS = st.lists(st.integers(0, SIZE - 1), max_size=50)
TEXT = np.random.default_rng(1).integers(0, 45, 400) ** 2 // 45


def add_gram(counts: list[Counter[Gram]], text: list[int], end: int) -> None:
    """Count the longest n-gram that ends here, and shorter ones until one was not new."""
    for n in range(min(len(counts) - 1, end), -1, -1):
        gram = tuple(text[end - n : end + 1])
        counts[n][gram] += 1
        if counts[n][gram] > 1:
            break


def discounts_of(table: Counter[Gram]) -> list[float]:
    one, two, three, four = (sum(size == times for size in table.values()) + 1 for times in (1, 2, 3, 4))
    rate = one / (one + 2 * two)
    values = (1 - 2 * rate * two / one, 2 - 3 * rate * three / two, 3 - 4 * rate * four / three)
    return [0.0, *(min(max(value, 0.05), n + 0.95) for n, value in enumerate(values))]


def slow_rows(train: list[int], text: list[int], order: int) -> list[list[float]]:
    """Return the probabilities of all tokens before each one of `text`, by counting in dictionaries."""
    counts = [Counter[Gram]() for _ in range(order)]
    for end in range(len(train)):
        add_gram(counts, train, end)
    discounts, rows = [discounts_of(table) for table in counts], []
    for end in range(len(text)):
        row = [1 / SIZE] * SIZE
        for n in range(min(order, end + 1)):
            context = tuple(text[end - n : end])
            seen = {gram[-1]: size for gram, size in counts[n].items() if gram[:-1] == context}
            if total := sum(seen.values()):
                mass = sum(discounts[n][min(size, 3)] for size in seen.values())
                sizes = [seen.get(token, 0) for token in range(SIZE)]
                row = [
                    (size - discounts[n][min(size, 3)] + mass * chance) / total
                    for size, chance in zip(sizes, row, strict=True)
                ]
        rows.append(row)
    return rows


@given(IDS, IDS, st.integers(1, 4))
def test_probabilities_equal_counting_in_dictionaries(train: list[int], text: list[int], order: int) -> None:
    ngrams, rows = NGrams(np.array(train, int), SIZE, order), slow_rows(train, text, order)
    expected = [row[token] for row, token in zip(rows, text, strict=True)]
    assert ngrams.probabilities(np.array(text, int)) == pytest.approx(expected)


@given(IDS, st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=50), st.integers(1, 4))
def test_predictions_are_distributions_and_equal_counting_in_dictionaries(
    train: list[int], text: list[int], order: int
) -> None:
    ngrams = NGrams(np.array(train, int), SIZE, order)
    for length, row in enumerate(slow_rows(train, text, order)):
        chances = ngrams.predict(text[:length])
        assert chances.tolist() == pytest.approx(row)
        assert float(chances.sum()) == pytest.approx(1)


def test_mixture_is_a_distribution() -> None:
    chances = NGrams(TEXT, 45, 3).predict(TEXT[:20].tolist())
    logprobs = mixed(torch.randn(2, 45).log_softmax(-1), torch.stack([chances, chances]))
    assert logprobs.exp().sum(-1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize(("size", "dtype"), [(45, np.uint8), (6_000, np.uint16), (1 << 16, np.uint32)])
def test_file_holds_the_ids_in_few_bytes(size: int, dtype: type) -> None:
    ids = np.load(io.BytesIO(NGrams(TEXT, size, 2).to_bytes()))
    assert ids.dtype == dtype
    assert ids.tolist() == TEXT.tolist()


@pytest.fixture
def network() -> GPT:
    model = perturbed_network(SMALL)
    model.ngrams = NGrams(TEXT, SMALL.vocab_size, 4)
    return model


def test_evaluation_equals_scoring_the_text_as_a_prompt(network: GPT) -> None:
    ids = TEXT[100:116]
    evaluation = evaluate(network, ValidationSet(ids, 1, 1), torch.device("cpu"))
    (score,) = score_prompts(network, [ids.tolist()], SMALL.vocab_size, 3)
    assert evaluation
    assert evaluation.loss * 15 == pytest.approx(-sum(token.logprob for token in score.tokens), rel=1e-5)
    network.ngrams = None
    alone = evaluate(network, ValidationSet(ids, 1, 1), torch.device("cpu"))
    assert alone
    assert evaluation.loss < alone.loss, "the text is part of the training text"


@torch.no_grad()
def test_evaluation_of_a_long_text_mixes_each_window_with_the_counts(network: GPT) -> None:
    ids = TEXT[::-1][:60].copy()
    assert network.ngrams
    nats = 0.0
    for position, target in enumerate(ids[1:].tolist()):
        start = max(0, (position - 8) // 8 * 8)
        logits = network(torch.from_numpy(ids)[None, start : position + 1])[0, -1]
        chances = network.ngrams.predict(ids[: position + 1].tolist())
        nats -= float(mixed(logits.log_softmax(-1), chances)[target])
    evaluation = evaluate(network, ValidationSet(ids, 1, 1), torch.device("cpu"))
    assert evaluation
    assert evaluation.loss * 59 == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("scores_prompt", [False, True])
def test_sampled_text_is_the_likeliest_of_the_mixture_computed_anew(network: GPT, scores_prompt: bool) -> None:
    prompts, options = [[7, 1, 4], [3]], SampleOptions(max_tokens=10, temperature=0)
    sequences = [
        TokenSequence(Integers(45), prompt, options, 1, scores_prompt=scores_prompt and len(prompt) > 1)
        for prompt in prompts
    ]
    engine = Engine(network, 2)
    for sequence in sequences:
        engine.add(sequence)
    while not all(sequence.finish_reason for sequence in sequences):
        engine.step()
    for prompt, sequence in zip(prompts, sequences, strict=True):
        for _ in range(10):
            (score,) = score_prompts(network, [prompt], 45, 1)
            prompt.append(int(score.next_logits.argmax()))
        assert sequence.context[: len(prompt)] == prompt
