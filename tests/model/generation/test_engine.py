"""Choosing the next token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from model.config import GPTConfig
from model.generation.engine import Continuation, Engine, sample, stream
from model.generation.sampling import SampleOptions, choose
from model.network.gpt import GPT
from pipeline.errors import BadConfig, BadData
from pipeline.tokenizers import Characters, Integers
from tests.support.networks import SMALL, stirred, variants

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def chosen(options: SampleOptions, draws: int = 400) -> set[int]:
    generator = torch.Generator().manual_seed(1)
    return {choose(LOGITS.clone(), options, generator) for _ in range(draws)}


def test_greedy_and_temperature_zero_take_the_likeliest() -> None:
    assert chosen(SampleOptions(greedy=True)) == {0}
    assert chosen(SampleOptions(temperature=0)) == {0}


def test_plain_sampling_reaches_every_token() -> None:
    assert chosen(SampleOptions(temperature=1)) == {0, 1, 2, 3}


def test_top_k_keeps_the_k_likeliest() -> None:
    assert chosen(SampleOptions(temperature=1, top_k=2)) == {0, 1}


def test_top_p_keeps_the_fewest_that_make_up_p_and_always_the_first() -> None:
    assert chosen(SampleOptions(temperature=1, top_p=0.79)) == {0, 1}
    assert chosen(SampleOptions(temperature=1, top_p=0.81)) == {0, 1, 2}
    assert chosen(SampleOptions(temperature=1, top_p=0.01)) == {0}


@pytest.mark.parametrize(
    "wrong",
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
        {"stop": ("",)},
    ],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadConfig):
        SampleOptions(**wrong)


def model(vocab_size: int) -> GPT:
    made = GPT(GPTConfig(vocab_size=vocab_size, block_size=8, layers=1, heads=2, width=16))
    made.initialise(1)
    return made


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    tokenizer, options = Integers(40), SampleOptions(max_tokens=20, temperature=1, seed=5)
    one, again = (sample(model(40), tokenizer, [("", [1, 2])], options)[0] for _ in range(2))
    other = sample(model(40), tokenizer, [("", [1, 2])], replace(options, seed=2))[0]
    assert one.token_ids == again.token_ids
    assert one.token_ids != other.token_ids


def test_text_may_grow_past_the_block_and_the_prompt_may_be_empty_or_longer_than_it() -> None:
    tokenizer, options = Integers(40), SampleOptions(max_tokens=20, temperature=1, seed=5)
    for prompt in ([], list(range(1, 30))):
        made = sample(model(40), tokenizer, [("", prompt)], options)[0]
        assert len(made.token_ids) == 20


def test_ids_beyond_the_tokenizer_are_padding_and_never_come() -> None:
    options = SampleOptions(max_tokens=200, temperature=5)
    made = sample(model(64), Integers(10), [("", [1])], options)[0]
    assert all(token < 10 for token in made.token_ids)


def test_the_end_of_text_ends_a_sample_and_is_not_part_of_it() -> None:
    certain = model(10)
    with torch.no_grad():
        certain.embedding.weight.zero_()
        certain.embedding.weight[0] = 1.0
        certain.norm.bias.fill_(1.0)
    made = sample(certain, Integers(10), [("", [1])], SampleOptions(greedy=True))[0]
    assert made.token_ids == []


def test_the_smallest_numbers_take_the_likeliest_too() -> None:
    assert chosen(SampleOptions(temperature=1, top_p=1e-46), 10) == {0}
    assert chosen(SampleOptions(temperature=1e-46), 10) == {0}


def test_min_p_leaves_out_what_is_much_less_likely_than_the_likeliest() -> None:
    assert chosen(SampleOptions(temperature=1, min_p=0.2)) == {0, 1, 2}
    assert chosen(SampleOptions(temperature=1, min_p=0.5)) == {0, 1}
    assert chosen(SampleOptions(temperature=1, min_p=1.0)) == {0}


def test_a_penalty_makes_what_was_there_less_likely_whatever_its_sign() -> None:
    options, generator = SampleOptions(greedy=True, repetition_penalty=2.0), torch.Generator()
    assert choose(torch.tensor([3.0, 2.0, -1.0]), options, generator, [0]) == 1
    assert choose(torch.tensor([-3.0, -2.0, -3.5]), options, generator, [1]) == 0
    assert choose(torch.tensor([3.0, 2.0, -1.0]), options, generator, []) == 0


def test_draws_are_as_likely_as_the_probabilities() -> None:
    generator, options = torch.Generator().manual_seed(1), SampleOptions(temperature=1)
    draws = torch.tensor([choose(LOGITS.clone(), options, generator) for _ in range(4000)])
    torch.testing.assert_close(draws.bincount() / 4000, LOGITS.exp(), atol=0.03, rtol=0)


RAGGED = [list(range(1, length)) for length in (1, 2, 5, 9, 17, 3, 30, 8)]  # of a block of 8


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, positions="rotary"), variants()[-1]], ids=str)
def test_prompts_of_all_lengths_together_give_what_each_gives_alone(config: GPTConfig) -> None:
    network = stirred(replace(config, block_size=8))
    tokenizer, options = Integers(50), SampleOptions(max_tokens=20, temperature=1, seed=5)
    together = sample(network, tokenizer, [("", each) for each in RAGGED], options)
    for number, (prompt, made) in enumerate(zip(RAGGED, together, strict=True)):
        (alone,) = sample(network, tokenizer, [("", prompt)], replace(options, seed=5 + number))
        assert alone.token_ids == made.token_ids
        assert (alone.text, alone.ended) == (made.text, made.ended)


def test_texts_that_join_and_leave_do_not_disturb_the_others() -> None:
    network, tokenizer = stirred(replace(variants()[-1], block_size=8)), Integers(50)
    options = [SampleOptions(max_tokens=length, temperature=1) for length in (4, 25, 9, 14, 1)]
    texts = [Continuation(tokenizer, RAGGED[n], each, seed=n) for n, each in enumerate(options)]
    engine, waiting = Engine(network, 2), list(texts)
    while waiting or engine.active:
        while waiting and not engine.full:
            engine.add(waiting.pop(0))
        engine.step()
    for number, text in enumerate(texts):
        alone = Continuation(tokenizer, RAGGED[number], options[number], seed=number)
        list(stream(Engine(network, 1), alone))
        assert alone.made == text.made


def test_samples_of_one_prompt_differ_and_more_than_there_are_rows_have_their_turn() -> None:
    made = sample(stirred(SMALL), Integers(50), [("", [1, 2, 3])] * 40, SampleOptions(max_tokens=8, temperature=1))
    assert len({tuple(each.token_ids) for each in made}) > 30


def test_a_text_ends_before_a_stop_also_where_it_spans_tokens() -> None:
    tokenizer, network = Characters("".join(map(chr, range(0x4E00, 0x4E30))), "test"), stirred(SMALL)
    options = SampleOptions(max_tokens=15, temperature=1)
    (whole,) = sample(network, tokenizer, [("", [5])], options)
    stop = whole.text[6:9]
    (made,) = sample(network, tokenizer, [("", [5])], replace(options, stop=("nowhere", stop)))
    assert made.text == whole.text[: whole.text.index(stop)]
    assert made.ended == "stop"
    text = Continuation(tokenizer, [5], replace(options, stop=(stop, stop[0] + "nowhere")), options.seed)
    assert "".join(token.text for token in stream(Engine(network, 1), text)) == made.text


def test_a_text_that_only_began_a_stop_is_shown_whole() -> None:
    tokenizer, network = Characters("".join(map(chr, range(0x4E00, 0x4E30))), "test"), stirred(SMALL)
    options = SampleOptions(max_tokens=15, temperature=1)
    (whole,) = sample(network, tokenizer, [("", [5])], options)
    begun = tuple(character + "nowhere" for character in set(whole.text))
    assert sample(network, tokenizer, [("", [5])], replace(options, stop=begun))[0].text == whole.text


def test_weights_that_are_no_numbers_are_an_error_and_no_text() -> None:
    network = stirred(SMALL)
    with torch.no_grad():
        network.norm.weight[0] = torch.nan
    with pytest.raises(BadData, match="no finite numbers"):
        sample(network, Integers(50), [("", [1])], SampleOptions())


def window_by_window(network: GPT, prompt: list[int], count: int) -> list[int]:
    """Greedy, each token from a pass over what a full row keeps: all of it, then the last half and what comes after."""
    size = network.config.block_size
    context, seen = list(prompt), min(len(prompt), size)
    for _ in range(count):
        with torch.no_grad():
            logits = network(torch.tensor([context[-seen:]]))[0, -1]
        context.append(int(logits.argmax()))
        seen = size // 2 if seen == size else seen + 1
    return context[len(prompt) :]


@pytest.mark.parametrize("length", [1, 5, 8, 20])
def test_a_text_that_fills_learned_positions_goes_on_from_its_last_half(length: int) -> None:
    network, prompt = stirred(replace(SMALL, block_size=8)), list(range(1, length + 1))
    made = sample(network, Integers(50), [("", prompt)], SampleOptions(max_tokens=30, greedy=True))[0]
    expected = window_by_window(network, prompt, 30)
    assert made.token_ids == expected[: len(made.token_ids)]
    assert len(made.token_ids) == 30 or expected[len(made.token_ids)] == 0


def test_more_rows_than_memory_are_refused_with_the_number_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.generation.engine.free_memory", lambda device: 10 * 2 * 2 * 16 * 16 * 4)
    with pytest.raises(BadConfig, match="--rows 9 would fit"):
        Engine(stirred(SMALL), 10)
    made = sample(stirred(SMALL), Integers(50), [("", [1])] * 12, SampleOptions(max_tokens=2))
    assert len(made) == 12
