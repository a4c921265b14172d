"""What is remembered gives what reading everything anew gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import GPTConfig
from model.network.gpt import GPT
from model.network.kv_cache import Cache
from tests.support.networks import SMALL, made, stirred, variants

SPECIAL = variants()[-1]


def cache(model: GPT, rows: int) -> Cache:
    return Cache(model.config, rows, torch.float32, torch.device("cpu"))


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("config", variants(), ids=str)
@torch.inference_mode()
def test_tokens_one_by_one_give_the_logits_of_all_at_once(config: GPTConfig) -> None:
    model, text = stirred(config), ids(2, 16)
    remembered, whole = cache(model, 2), model(text)
    first = model.following(text[:, :5], remembered.read(0, 2, 5))
    torch.testing.assert_close(first, whole[:, 4], atol=1e-5, rtol=1e-5)
    for place in range(5, 16):
        logits = model.following(text[:, place : place + 1], remembered.read(0, 2, 1))
        torch.testing.assert_close(logits, whole[:, place], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_several_tokens_may_go_on_from_a_remembered_past() -> None:
    model, text = stirred(SPECIAL), ids(1, 12)
    remembered = cache(model, 1)
    model.states(text[:, :4], past=remembered.read(0, 1, 4))
    logits = model.following(text[:, 4:], remembered.read(0, 1, 8))
    torch.testing.assert_close(logits, model(text)[:, -1], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_of_several_lengths_see_their_own_past_alone() -> None:
    model, lengths, text = stirred(SPECIAL), (3, 9, 1), ids(3, 12)
    remembered = cache(model, 3)
    for row, length in enumerate(lengths):
        model.states(text[row : row + 1, :length], past=remembered.read(row, 1, length))
    last = torch.stack([text[row, length : length + 1] for row, length in enumerate(lengths)])
    logits = model.following(last, remembered.read(0, 3, 1))
    for row, length in enumerate(lengths):
        alone = model(text[row : row + 1, : length + 1])[0, -1]
        torch.testing.assert_close(logits[row], alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_copied_row_goes_on_as_the_other_and_a_forgotten_one_from_nothing() -> None:
    model, text = stirred(SPECIAL), ids(1, 8)
    remembered = cache(model, 2)
    model.states(text, past=remembered.read(0, 1, 8))
    remembered.copy(0, 1)
    remembered.forget(0)
    last = torch.tensor([[7], [7]])
    fresh, copied = model.following(last, remembered.read(0, 2, 1))
    torch.testing.assert_close(fresh, model(last[:1])[0, -1], atol=1e-5, rtol=1e-5)
    whole = model(torch.cat((text, last[1:]), dim=1))[0, -1]
    torch.testing.assert_close(copied, whole, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_with_rotary_positions_one_block_slides_on_without_end() -> None:
    """With one layer what is seen are embeddings, so the last block is all that there is to know."""
    config = replace(SMALL, layers=1, positions="rotary")
    model, text = stirred(config), ids(1, 40)
    remembered = cache(model, 1)
    for place in range(40):
        logits = model.following(text[:, place : place + 1], remembered.read(0, 1, 1))
        seen = text[:, max(0, place - 15) : place + 1]
        torch.testing.assert_close(logits, model(seen)[:, -1], atol=1e-4, rtol=1e-4)


def test_with_learned_positions_a_row_is_full_when_all_of_them_are_taken() -> None:
    learned, rotary = (cache(made(replace(SMALL, positions=each)), 1) for each in ("learned", "rotary"))
    for each in (learned, rotary):
        each.read(0, 1, 16)
    assert learned.full(0)
    assert not rotary.full(0)
