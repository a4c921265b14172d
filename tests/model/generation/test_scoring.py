"""Scores of prompts equal a plain forward pass, alone and in batches; penalties of generated tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import GPTConfig
from model.generation import scoring
from model.generation.engine import Engine, TokenSequence
from model.generation.sampling import SampleOptions, sample_token
from model.generation.scoring import score_prompts
from model.network.gpt import GPT
from pipeline.errors import BadData
from pipeline.tokenizers import Integers
from tests.support.networks import SMALL, config_variants, perturbed_network

COMBINED = replace(config_variants()[-1], block_size=8)
PROMPTS = [[7], [1, 2, 3, 4, 5, 6, 7, 8], [9, 9], [3, 1, 4, 1, 5]]
VOCABULARY = 45  # of the 50 rows; the rest are padding


def expected_logprobs(network: GPT, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return network.eval()(torch.tensor([prompt]))[0, :, :VOCABULARY].log_softmax(-1)


@pytest.mark.parametrize("config", [replace(SMALL, block_size=8), COMBINED], ids=["small", "combined"])
@pytest.mark.parametrize(("batch_tokens", "logits"), [(4096, 1 << 24), (1, 1), (16, 100)])
def test_scores_equal_a_forward_pass_of_each_prompt(
    config: GPTConfig, batch_tokens: int, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_LOGITS", logits)
    monkeypatch.setattr(scoring, "_MIN_ROWS", 1)
    network = perturbed_network(config)
    scores = score_prompts(network, PROMPTS, VOCABULARY, 3, batch_tokens)
    for prompt, score in zip(PROMPTS, scores, strict=True):
        logprobs = expected_logprobs(network, prompt)
        assert [token.token_id for token in score.tokens] == prompt[1:]
        for token, row in zip(score.tokens, logprobs, strict=False):
            assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-5)
            assert [token_id for token_id, _ in token.likeliest] == row.topk(3).indices.tolist()
            assert dict(token.likeliest).get(token.token_id, token.logprob) == token.logprob
        torch.testing.assert_close(score.next_logits.log_softmax(-1), logprobs[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [replace(SMALL, block_size=8), COMBINED], ids=["small", "combined"])
def test_a_sequence_with_scores_generates_the_same_text_beside_others(config: GPTConfig) -> None:
    network, options = perturbed_network(config), SampleOptions(max_tokens=12, temperature=1)
    sequences = [
        TokenSequence(Integers(VOCABULARY), prompt, options, seed, scores_prompt=seed % 2 == 0)
        for seed, prompt in enumerate([*PROMPTS, *PROMPTS])
    ]
    engine, waiting = Engine(network, 3), list(sequences)
    while not all(sequence.finish_reason for sequence in sequences):
        while waiting and not engine.is_full:
            engine.add(waiting.pop(0))
        engine.step()
    for seed, sequence in enumerate(sequences):
        alone = TokenSequence(Integers(VOCABULARY), PROMPTS[seed % 4], options, seed)
        single = Engine(network, 1)
        single.add(alone)
        while not alone.finish_reason:
            single.step()
        assert sequence.token_ids == alone.token_ids
        assert len(sequence.prompt_scores) == (len(PROMPTS[seed % 4]) - 1 if seed % 2 == 0 else 0)


def test_a_sequence_may_leave_before_its_prompt_is_scored() -> None:
    engine = Engine(perturbed_network(COMBINED), 2)
    first, second = (
        TokenSequence(Integers(50), [1, 2], SampleOptions(max_tokens=1), 1, scores_prompt=True) for _ in range(2)
    )
    engine.add(first)
    engine.add(second)
    assert engine.is_full
    engine.remove(first)
    assert [sequence for sequence, _ in engine.step()] == [second]
    assert not engine.is_full


def test_damaged_weights_are_an_error_and_not_a_score() -> None:
    network = perturbed_network(COMBINED)
    with torch.no_grad():
        network.embedding.weight[2] = float("nan")
    with pytest.raises(BadData, match="not finite"):
        score_prompts(network, [[1, 2, 3]], 50, 1)


def test_an_impossible_token_has_the_least_logprob_and_not_minus_infinity() -> None:
    network = perturbed_network(replace(COMBINED, softcap=0.0, head_bias=True))
    assert network.head_bias is not None
    with torch.no_grad():
        network.head_bias[3] = -1e6
    (score,) = score_prompts(network, [[1, 3]], 50, 1)
    assert score.tokens[0].logprob == scoring.LOG_ZERO


@pytest.mark.parametrize(
    ("penalties", "generated", "likeliest"),
    [
        ({}, [0, 0], 0),
        ({"frequency_penalty": 0.4}, [0], 0),  # 1.0 - 0.4 against 0.5
        ({"frequency_penalty": 0.4}, [0, 0], 1),  # 1.0 - 0.8
        ({"presence_penalty": 0.4}, [0, 0], 0),
        ({"presence_penalty": 0.6}, [0], 1),
        ({"presence_penalty": -0.6}, [1], 1),
        ({"frequency_penalty": 2.0}, [], 0),
    ],
)
def test_penalties_count_the_generated_tokens(
    penalties: dict[str, float], generated: list[int], likeliest: int
) -> None:
    options, generator = SampleOptions(greedy=True, **penalties), torch.Generator().manual_seed(1)  # type: ignore[arg-type]
    assert sample_token(torch.tensor([1.0, 0.5, 0.0]), options, generator, [0, 0, 0], generated) == likeliest
