"""The network: shapes, sizes, causality, positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from model.config import GPTConfig, fit
from model.network.gpt import GPT, Convolution, FeedForward, Rotary, turned
from model.presets import PRESETS
from tests.support.networks import SMALL, made, variants


@pytest.mark.parametrize("config", variants(), ids=str)
def test_the_formula_for_parameters_counts_what_the_network_holds(config: GPTConfig) -> None:
    assert config.parameters == sum(weight.numel() for weight in GPT(config).parameters())


@pytest.mark.parametrize(
    ("name", "vocab", "millions"),
    [("13m", 50_257, 13.1), ("gpt2-124m", 50_257, 124), ("shuihu-8m", 8000, 8), ("shuihu-8m-rope", 8000, 8)],
)
def test_presets_have_the_size_their_name_says(name: str, vocab: int, millions: float) -> None:
    parameters = fit(PRESETS[name].model, vocab).parameters / 1e6
    assert parameters == pytest.approx(millions, rel=0.01)


def test_presets_are_the_architectures_that_were_asked_for() -> None:
    mini, baby, big, gpt2 = (PRESETS[name].model for name in ("mini", "babygpt", "2b", "gpt2-124m"))
    assert (mini.layers, mini.width, mini.heads, mini.block_size, mini.vocab_size) == (2, 32, 4, 16, 100)
    assert (baby.layers, baby.heads, baby.width, baby.block_size, baby.dropout) == (6, 6, 384, 256, 0.2)
    assert (big.width, big.layers, big.heads, big.block_size) == (2048, 64, 16, 512)
    assert (gpt2.vocab_size, gpt2.block_size, gpt2.width, gpt2.layers, gpt2.heads) == (50_257, 1024, 768, 12, 12)
    assert gpt2.dropout == 0.1
    assert not gpt2.qkv_bias


@pytest.mark.parametrize("config", variants(), ids=str)
def test_a_token_never_sees_what_comes_after_it(config: GPTConfig) -> None:
    model = made(config)
    ids = torch.arange(16)[None] % 50
    changed = ids.clone()
    changed[0, 10:] = 7
    with torch.no_grad():
        before, after = model(ids)[0, :10], model(changed)[0, :10]
    torch.testing.assert_close(before, after)


def test_without_layers_and_positions_the_next_token_depends_on_the_last_alone() -> None:
    model = made(fit(PRESETS["bigram"].model, 50))
    with torch.no_grad():
        one, other = model(torch.tensor([[1, 2, 3]]))[0, -1], model(torch.tensor([[9, 8, 7, 3]]))[0, -1]
    torch.testing.assert_close(one, other)


def test_a_fresh_model_guesses_all_tokens_alike() -> None:
    ids = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(1))
    loss = made(SMALL)(ids[:, :-1], ids[:, 1:])
    assert float(loss.detach()) == pytest.approx(torch.log(torch.tensor(50.0)).item(), abs=0.1)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    turns = Rotary(8, 32, 10_000.0)(32)
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(8, generator=generator).expand(1, 1, 32, 8) for _ in range(2))
    scores = (turned(q, *turns) @ turned(k, *turns).transpose(-1, -2))[0, 0]
    for distance in (0, 1, 5):
        diagonal = torch.diagonal(scores, -distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_convolution_adds_shares_of_the_tokens_before_and_knows_its_slopes(length: int) -> None:
    generator = torch.Generator().manual_seed(3)
    convolution = Convolution(3, 4).double()
    x = torch.randn(2, length, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    shares = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    convolution.shares.data.copy_(shares)
    shifted = [F.pad(x, (0, 0, back, 0))[:, :length] for back in range(3)]
    expected = x + sum(each * share for each, share in zip(shifted, shares, strict=True))
    torch.testing.assert_close(convolution(x), expected)
    assert torch.autograd.gradcheck(lambda x, _: convolution(x), (x, convolution.shares))


def test_squared_relu_knows_its_slope() -> None:
    x = torch.tensor([-2.0, -0.5, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    layer = FeedForward(replace(SMALL, width=4, hidden=4, heads=1, activation="relu2")).double()
    for linear in (layer.up, layer.out):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    torch.testing.assert_close(layer(x), F.relu(x).square())
    assert torch.autograd.gradcheck(layer, (x,))


def test_the_same_seed_gives_the_same_weights() -> None:
    for (name, one), (_, other) in zip(made(SMALL).named_parameters(), made(SMALL).named_parameters(), strict=True):
        assert torch.equal(one, other), name
