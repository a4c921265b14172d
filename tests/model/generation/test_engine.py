"""Sampling of tokens, and batched decoding with the engine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.commands.recipe_samples import sample_options
from model.commands.sample import sample as sample_command
from model.config import GPTConfig
from model.generation.engine import Engine, TokenSequence, sample, stream
from model.generation.sampling import RANGES, SampleOptions, sample_token
from model.network.gpt import GPT
from pipeline.errors import BadConfig, BadData
from pipeline.refresh.recipe import SampleSection
from pipeline.tokenizers import Characters, Integers
from tests.support.networks import SMALL, config_variants, perturbed_network

COMBINED = config_variants()[-1]
LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def sampled_ids(options: SampleOptions, draws: int = 400) -> set[int]:
    generator = torch.Generator().manual_seed(1)
    return {sample_token(LOGITS.clone(), options, generator) for _ in range(draws)}


def test_greedy_and_temperature_zero_take_the_most_likely_token() -> None:
    assert sampled_ids(SampleOptions(greedy=True)) == {0}
    assert sampled_ids(SampleOptions(temperature=0)) == {0}


def test_sampling_without_limits_reaches_every_token() -> None:
    assert sampled_ids(SampleOptions(temperature=1)) == {0, 1, 2, 3}


def test_sample_and_recipes_have_the_same_defaults() -> None:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens")
    defaults = {option.name: option.default for option in sample_command.params if option.name in names}
    assert defaults == {name: getattr(SampleOptions(), name) for name in names}
    assert defaults["min_p"] == 0.05
    assert sample_options(SampleSection()) == SampleOptions(max_tokens=80)
    assert sample_options(SampleSection(temperature=0.5, min_p=0.0)) == SampleOptions(80, temperature=0.5, min_p=0.0)


def test_top_k_keeps_the_k_most_likely_tokens() -> None:
    assert sampled_ids(SampleOptions(temperature=1, top_k=2)) == {0, 1}


def test_top_p_keeps_the_fewest_tokens_that_add_up_to_p_but_at_least_one() -> None:
    assert sampled_ids(SampleOptions(temperature=1, top_p=0.79)) == {0, 1}
    assert sampled_ids(SampleOptions(temperature=1, top_p=0.81)) == {0, 1, 2}
    assert sampled_ids(SampleOptions(temperature=1, top_p=0.01)) == {0}


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 1 << 63},
        {"min_p": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"repetition_penalty": 1e-300},  # a logit divided by it is infinite
        {"repetition_penalty": 1e300},
        {"temperature": 1e300},
        {"max_tokens": 10**30},
        *({name: value} for name in RANGES for value in (math.nan, math.inf)),
        {"stop": ("",)},
    ],
)
def test_invalid_options_raise_bad_config(options: dict[str, Any]) -> None:
    with pytest.raises(BadConfig):
        SampleOptions(**options)


def small_network(vocab_size: int) -> GPT:
    network = GPT(GPTConfig(vocab_size=vocab_size, block_size=8, layers=1, heads=2, width=16))
    network.init_weights(1)
    return network


def test_the_text_depends_on_the_seed_only() -> None:
    tokenizer, options = Integers(40), SampleOptions(max_tokens=20, temperature=1, seed=5)
    first, second = (sample(small_network(40), tokenizer, [("", [1, 2])], options)[0] for _ in range(2))
    other_seed = sample(small_network(40), tokenizer, [("", [1, 2])], replace(options, seed=2))[0]
    assert first.token_ids == second.token_ids
    assert first.token_ids != other_seed.token_ids


def test_text_and_prompt_may_exceed_the_block_size_and_the_prompt_may_be_empty() -> None:
    tokenizer, options = Integers(40), SampleOptions(max_tokens=20, temperature=1, seed=5)
    for prompt in ([], list(range(1, 30))):
        assert len(sample(small_network(40), tokenizer, [("", prompt)], options)[0].token_ids) == 20


def test_padding_ids_beyond_the_tokenizer_are_never_sampled() -> None:
    options = SampleOptions(max_tokens=200, temperature=5)
    result = sample(small_network(64), Integers(10), [("", [1])], options)[0]
    assert all(token < 10 for token in result.token_ids)


def test_end_of_text_ends_a_sample_and_is_not_included() -> None:
    network = small_network(10)
    assert isinstance(network.norm, torch.nn.LayerNorm)
    with torch.no_grad():  # the end of text, 0, becomes certain
        network.embedding.weight.zero_()
        network.embedding.weight[0] = 1.0
        network.norm.bias.fill_(1.0)
    result = sample(network, Integers(10), [("", [1])], SampleOptions(greedy=True))[0]
    assert result.token_ids == []


def test_tiny_temperature_or_top_p_takes_the_most_likely_token() -> None:
    assert sampled_ids(SampleOptions(temperature=1, top_p=1e-46), 10) == {0}
    assert sampled_ids(SampleOptions(temperature=1e-46), 10) == {0}


def test_min_p_drops_tokens_far_less_likely_than_the_most_likely_one() -> None:
    assert sampled_ids(SampleOptions(temperature=1, min_p=0.2)) == {0, 1, 2}
    assert sampled_ids(SampleOptions(temperature=1, min_p=0.5)) == {0, 1}
    assert sampled_ids(SampleOptions(temperature=1, min_p=1.0)) == {0}


def test_repetition_penalty_lowers_logits_of_either_sign() -> None:
    options, generator = SampleOptions(greedy=True, repetition_penalty=2.0), torch.Generator()
    assert sample_token(torch.tensor([3.0, 2.0, -1.0]), options, generator, [0]) == 1
    assert sample_token(torch.tensor([-3.0, -2.0, -3.5]), options, generator, [1]) == 0
    assert sample_token(torch.tensor([3.0, 2.0, -1.0]), options, generator, []) == 0


def test_repetition_penalty_counts_the_last_ids_that_fit_into_the_block() -> None:
    network, tokenizer = small_network(40), Integers(40)
    options = SampleOptions(max_tokens=6, greedy=True, repetition_penalty=5.0)
    tail = [3, 9, 4, 9, 4, 3, 9, 4]
    assert len(tail) == network.config.block_size
    prompts = [tail, list(range(40)) + tail]  # all ids occur in the second, most of them before the block
    texts = [text.token_ids for text in sample(network, tokenizer, [("", ids) for ids in prompts], options)]
    assert texts[0] == texts[1]
    plain = sample(network, tokenizer, [("", tail)], replace(options, repetition_penalty=1.0))
    assert plain[0].token_ids != texts[0]


def test_sampled_frequencies_match_the_probabilities() -> None:
    generator, options = torch.Generator().manual_seed(1), SampleOptions(temperature=1)
    draws = torch.tensor([sample_token(LOGITS.clone(), options, generator) for _ in range(4000)])
    torch.testing.assert_close(draws.bincount() / 4000, LOGITS.exp(), atol=0.03, rtol=0)


PROMPTS = [list(range(1, length)) for length in (1, 2, 5, 9, 17, 3, 30, 8)]  # for a block size of 8


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, positions="rotary"), COMBINED], ids=str)
def test_a_batch_of_prompts_gives_the_texts_of_single_prompts(config: GPTConfig) -> None:
    network = perturbed_network(replace(config, block_size=8))
    tokenizer, options = Integers(50), SampleOptions(max_tokens=20, temperature=1, seed=5)
    batch = sample(network, tokenizer, [("", prompt) for prompt in PROMPTS], options)
    for index, (prompt, result) in enumerate(zip(PROMPTS, batch, strict=True)):
        (expected,) = sample(network, tokenizer, [("", prompt)], replace(options, seed=5 + index))
        assert result.token_ids == expected.token_ids
        assert (result.text, result.ended) == (expected.text, expected.ended)


def test_sequences_joining_and_leaving_do_not_change_the_others() -> None:
    network, tokenizer = perturbed_network(replace(COMBINED, block_size=8)), Integers(50)
    options = [SampleOptions(max_tokens=length, temperature=1) for length in (4, 25, 9, 14, 1)]
    sequences = [TokenSequence(tokenizer, PROMPTS[i], options[i], seed=i) for i in range(5)]
    engine, waiting = Engine(network, 2), list(sequences)
    while waiting or engine.active:
        while waiting and not engine.is_full:
            engine.add(waiting.pop(0))
        engine.step()
    for i, sequence in enumerate(sequences):
        expected = TokenSequence(tokenizer, PROMPTS[i], options[i], seed=i)
        list(stream(Engine(network, 1), expected))
        assert sequence.token_ids == expected.token_ids


def test_more_samples_than_rows_are_all_generated_and_differ() -> None:
    options = SampleOptions(max_tokens=8, temperature=1)
    samples = sample(perturbed_network(SMALL), Integers(50), [("", [1, 2, 3])] * 40, options)
    assert len({tuple(result.token_ids) for result in samples}) > 30


def test_a_stop_text_that_spans_tokens_ends_the_text_before_it() -> None:
    tokenizer, network = Characters("".join(map(chr, range(0x4E00, 0x4E30))), "test"), perturbed_network(SMALL)
    options = SampleOptions(max_tokens=15, temperature=1)
    (unstopped,) = sample(network, tokenizer, [("", [5])], options)
    stop = unstopped.text[6:9]
    (stopped,) = sample(network, tokenizer, [("", [5])], replace(options, stop=("nowhere", stop)))
    assert stopped.text == unstopped.text[: unstopped.text.index(stop)]
    assert stopped.ended == "stop"
    sequence = TokenSequence(tokenizer, [5], replace(options, stop=(stop, stop[0] + "nowhere")), options.seed)
    assert "".join(token.text for token in stream(Engine(network, 1), sequence)) == stopped.text


def test_a_partial_stop_text_is_kept_in_the_text() -> None:
    tokenizer, network = Characters("".join(map(chr, range(0x4E00, 0x4E30))), "test"), perturbed_network(SMALL)
    options = SampleOptions(max_tokens=15, temperature=1)
    (expected,) = sample(network, tokenizer, [("", [5])], options)
    stops = tuple(character + "nowhere" for character in set(expected.text))
    assert sample(network, tokenizer, [("", [5])], replace(options, stop=stops))[0].text == expected.text


def test_weights_that_are_not_finite_raise_bad_data() -> None:
    network = perturbed_network(SMALL)
    assert isinstance(network.norm, torch.nn.LayerNorm)
    with torch.no_grad():
        network.norm.weight[0] = torch.nan
    with pytest.raises(BadData, match="not finite"):
        sample(network, Integers(50), [("", [1])], SampleOptions())


def generate_by_full_passes(network: GPT, prompt: list[int], count: int) -> list[int]:
    """Generate greedily with a full forward pass per token, over the tokens that a cache row would hold.

    After a full row that is its last half and what follows.
    """
    size = network.config.block_size
    context, length = list(prompt), min(len(prompt), size)
    for _ in range(count):
        with torch.no_grad():
            logits = network(torch.tensor([context[-length:]]))[0, -1]
        context.append(int(logits.argmax()))
        length = size // 2 if length == size else length + 1
    return context[len(prompt) :]


@pytest.mark.parametrize("length", [1, 5, 8, 20])
def test_a_full_row_with_learned_positions_continues_from_its_last_half(length: int) -> None:
    network, prompt = perturbed_network(replace(SMALL, block_size=8)), list(range(1, length + 1))
    result = sample(network, Integers(50), [("", prompt)], SampleOptions(max_tokens=30, greedy=True))[0]
    expected = generate_by_full_passes(network, prompt, 30)
    assert result.token_ids == expected[: len(result.token_ids)]
    assert len(result.token_ids) == 30 or expected[len(result.token_ids)] == 0


def test_too_many_rows_for_the_memory_raise_with_the_number_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.generation.engine.free_memory", lambda device: 10 * 2 * 2 * 16 * 16 * 4)
    with pytest.raises(BadConfig, match="--rows 9 would fit"):
        Engine(perturbed_network(SMALL), 10)
    samples = sample(perturbed_network(SMALL), Integers(50), [("", [1])] * 12, SampleOptions(max_tokens=2))
    assert len(samples) == 12
