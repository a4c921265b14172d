"""Incremental decoding with the KV cache gives the logits of a full forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import GPTConfig
from model.network.gpt import GPT
from model.network.kv_cache import KVCache
from tests.support.networks import SMALL, build_network, config_variants, perturbed_network

COMBINED = config_variants()[-1]


def new_cache(model: GPT, rows: int) -> KVCache:
    return KVCache(model.config, rows, torch.float32, torch.device("cpu"))


def random_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("config", config_variants(), ids=str)
@torch.inference_mode()
def test_decoding_token_by_token_equals_a_full_pass(config: GPTConfig) -> None:
    model, ids = perturbed_network(config), random_ids(2, 16)
    cache, expected = new_cache(model, 2), model(ids)
    logits = model.next_logits(ids[:, :5], cache.extend(0, 2, 5))
    torch.testing.assert_close(logits, expected[:, 4], atol=1e-5, rtol=1e-5)
    for position in range(5, 16):
        logits = model.next_logits(ids[:, position : position + 1], cache.extend(0, 2, 1))
        torch.testing.assert_close(logits, expected[:, position], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_several_tokens_may_follow_cached_ones() -> None:
    model, ids = perturbed_network(COMBINED), random_ids(1, 12)
    cache = new_cache(model, 1)
    model.hidden_states(ids[:, :4], cache=cache.extend(0, 1, 4))
    logits = model.next_logits(ids[:, 4:], cache.extend(0, 1, 8))
    torch.testing.assert_close(logits, model(ids)[:, -1], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_of_different_lengths_see_only_their_own_tokens() -> None:
    model, lengths, ids = perturbed_network(COMBINED), (3, 9, 1), random_ids(3, 12)
    cache = new_cache(model, 3)
    for row, length in enumerate(lengths):
        model.hidden_states(ids[row : row + 1, :length], cache=cache.extend(row, 1, length))
    last_ids = torch.stack([ids[row, length : length + 1] for row, length in enumerate(lengths)])
    logits = model.next_logits(last_ids, cache.extend(0, 3, 1))
    for row, length in enumerate(lengths):
        expected = model(ids[row : row + 1, : length + 1])[0, -1]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_copied_row_continues_the_original_and_a_reset_row_is_empty() -> None:
    model, ids = perturbed_network(COMBINED), random_ids(1, 8)
    cache = new_cache(model, 2)
    model.hidden_states(ids, cache=cache.extend(0, 1, 8))
    cache.copy(0, 1)
    cache.reset(0)
    last_ids = torch.tensor([[7], [7]])
    reset_logits, copied_logits = model.next_logits(last_ids, cache.extend(0, 2, 1))
    torch.testing.assert_close(reset_logits, model(last_ids[:1])[0, -1], atol=1e-5, rtol=1e-5)
    expected = model(torch.cat((ids, last_ids[1:]), dim=1))[0, -1]
    torch.testing.assert_close(copied_logits, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_row_with_rotary_positions_slides_beyond_the_block_size() -> None:
    """With one layer keys and values depend on the embeddings only, so the last 16 tokens determine the logits."""
    config = replace(SMALL, layers=1, positions="rotary")
    model, ids = perturbed_network(config), random_ids(1, 40)
    cache = new_cache(model, 1)
    for position in range(40):
        logits = model.next_logits(ids[:, position : position + 1], cache.extend(0, 1, 1))
        window = ids[:, max(0, position - 15) : position + 1]
        torch.testing.assert_close(logits, model(window)[:, -1], atol=1e-4, rtol=1e-4)


def test_only_rows_with_learned_positions_become_full() -> None:
    learned, rotary = (new_cache(build_network(replace(SMALL, positions=name)), 1) for name in ("learned", "rotary"))
    for cache in (learned, rotary):
        cache.extend(0, 1, 16)
    assert learned.is_full(0)
    assert not rotary.is_full(0)
