"""Causal attention by batched products equals torch's, and is as accurate in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import GPTConfig
from model.network import causal_attention as ours
from model.network.gpt import GPT

_APPLY = ours._CausalAttention.apply


def inputs(length: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return queries, keys, values and the gradient of the result, laid out as in the network."""
    draw = torch.Generator().manual_seed(length)
    counts = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(2, length, count, 16, generator=draw).to(dtype).transpose(1, 2) for count in counts]


def results(attention: object, q: Tensor, k: Tensor, v: Tensor, grad_y: Tensor) -> list[Tensor]:
    """Return the attention and the gradients of its inputs."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    y = attention(*leaves)  # type: ignore[operator]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y.to(y.dtype))]


def torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("length", [1, 5, 127, 128, 129, 300])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 2), (4, 1)])
def test_attention_and_gradients_equal_those_of_torch(length: int, heads: int, kv_heads: int) -> None:
    arguments = inputs(length, heads, kv_heads, torch.float32)
    actual = results(lambda q, k, v: _APPLY(q, k, v, torch.float32), *arguments)
    for ours_, expected in zip(actual, results(torch_attention, *arguments), strict=True):
        assert ours_.shape == expected.shape
        torch.testing.assert_close(ours_, expected, atol=2e-5, rtol=0)


def test_bfloat16_is_as_accurate_as_torch() -> None:
    """The distances from the exact attention and gradients are at most a half larger."""
    exact = inputs(200, 4, 2)
    exact[0] *= 3  # scores as a trained network has them
    exact = [x.bfloat16().double() for x in exact]
    narrow = [x.bfloat16() for x in exact]
    expected = results(torch_attention, *exact)
    with torch.autocast("cpu", torch.bfloat16):
        actual, by_torch = results(ours.causal_attention, *narrow), results(torch_attention, *narrow)
    for reference, x, other in zip(expected, actual, by_torch, strict=True):
        assert x.dtype == torch.bfloat16
        assert (x - reference).norm() < 1.5 * (other - reference).norm()


def test_probabilities_kept_are_counted() -> None:
    for length in (1, 128, 200, 512):
        q, k, v, _ = (x.requires_grad_() for x in inputs(length, 2, 2, torch.float32))
        y = _APPLY(q, k, v, torch.float32)
        kept = [x.numel() for x in y.grad_fn.saved_tensors[3:]]
        assert sum(kept) == 2 * 2 * ours.pairs(length)


def test_network_in_bfloat16_gives_the_loss_of_fp32() -> None:
    model = GPT(GPTConfig(vocab_size=50, block_size=160, layers=2, heads=4, kv_heads=2, width=32, positions="rotary"))
    model.init_weights(1)
    ids = torch.randint(50, (2, 161), generator=torch.Generator().manual_seed(5))
    losses = []
    for is_narrow in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_narrow):
            losses.append(float(model(ids[:, :-1], ids[:, 1:])))
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
