"""Choosing the next token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import GPTConfig
from model.generate import SampleOptions, choose, sample
from model.gpt import GPT
from pipeline.errors import BadConfig
from pipeline.tokenizers import Integers

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


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}])
def test_options_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
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
