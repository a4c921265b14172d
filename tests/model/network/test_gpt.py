"""The network: size, causality, positions, hand-written gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from model.config import GPTConfig, resolve_vocab_size
from model.network import masks
from model.network.convolution import Convolution
from model.network.gpt import GPT, FeedForward, Rotary, apply_rotary_emb
from model.presets import PRESETS
from tests.support.networks import SMALL, build_network, config_variants, perturbed_network


@pytest.mark.parametrize("config", config_variants(), ids=str)
def test_config_counts_the_parameters_of_the_network(config: GPTConfig) -> None:
    assert config.parameters == sum(weight.numel() for weight in GPT(config).parameters())


@pytest.mark.parametrize(
    ("name", "vocab_size", "millions"),
    [("13m", 50_257, 13.1), ("gpt2-124m", 50_257, 124), ("shuihu-8m", 8000, 8), ("shuihu-8m-rope", 8000, 8)],
)
def test_presets_have_the_size_in_their_name(name: str, vocab_size: int, millions: float) -> None:
    parameters = resolve_vocab_size(PRESETS[name].model, vocab_size).parameters / 1e6
    assert parameters == pytest.approx(millions, rel=0.01)


def test_presets_have_the_architecture_of_their_source() -> None:
    mini, baby, big, gpt2 = (PRESETS[name].model for name in ("mini", "babygpt", "2b", "gpt2-124m"))
    assert (mini.layers, mini.width, mini.heads, mini.block_size, mini.vocab_size) == (2, 32, 4, 16, 100)
    assert (baby.layers, baby.heads, baby.width, baby.block_size, baby.dropout) == (6, 6, 384, 256, 0.2)
    assert (big.width, big.layers, big.heads, big.block_size) == (2048, 64, 16, 512)
    assert (gpt2.vocab_size, gpt2.block_size, gpt2.width, gpt2.layers, gpt2.heads) == (50_257, 1024, 768, 12, 12)
    assert gpt2.dropout == 0.1
    assert not gpt2.qkv_bias


@pytest.mark.parametrize("config", config_variants(), ids=str)
def test_later_tokens_do_not_change_earlier_logits(config: GPTConfig) -> None:
    model = build_network(config)
    ids = torch.arange(16)[None] % 50
    changed = ids.clone()
    changed[0, 10:] = 7
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0, :10], model(changed)[0, :10])


@pytest.mark.parametrize("config", config_variants(), ids=str)
def test_packed_documents_give_the_losses_and_gradients_of_rows_of_their_own(config: GPTConfig) -> None:
    """Two rows of documents, of 5 and 11 tokens and of 9 with padding, and their targets."""
    model = perturbed_network(config)
    ids = torch.randint(0, 50, (2, 17), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[*range(5), *range(11)], [*range(9), *([0] * 7)]])
    weights = torch.rand(2, 16, generator=torch.Generator().manual_seed(2)) * (torch.arange(32).view(2, 16) < 25)
    packed = model(ids[:, :-1], ids[:, 1:], masks.packed_mask(positions), positions, weights)
    packed.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    separate = torch.zeros(())
    for row, start, stop in ((0, 0, 5), (0, 5, 16), (1, 0, 9)):
        inputs, targets = ids[row : row + 1, start:stop], ids[row : row + 1, start + 1 : stop + 1]
        separate = separate + model(inputs, targets, weights=weights[row : row + 1, start:stop])
    separate.backward()
    torch.testing.assert_close(packed, separate, atol=1e-6, rtol=1e-6)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        expected, actual = (grad.to_dense() for grad in (weight.grad, gradients[name]))
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_bigram_preset_depends_on_the_last_token_only() -> None:
    model = build_network(resolve_vocab_size(PRESETS["bigram"].model, 50))
    with torch.no_grad():
        logits, other_logits = model(torch.tensor([[1, 2, 3]]))[0, -1], model(torch.tensor([[9, 8, 7, 3]]))[0, -1]
    torch.testing.assert_close(logits, other_logits)


def test_initial_loss_is_that_of_uniform_guessing() -> None:
    ids = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(1))
    loss = build_network(SMALL)(ids[:, :-1], ids[:, 1:])
    assert float(loss.detach()) == pytest.approx(torch.log(torch.tensor(50.0)).item(), abs=0.1)


def test_rotary_scores_depend_on_distance_only() -> None:
    cos_sin = Rotary(8, 32, 10_000.0)(32)
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(8, generator=generator).expand(1, 1, 32, 8) for _ in range(2))
    scores = (apply_rotary_emb(q, *cos_sin) @ apply_rotary_emb(k, *cos_sin).transpose(-1, -2))[0, 0]
    for distance in (0, 1, 5):
        diagonal = torch.diagonal(scores, -distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_convolution_and_its_gradient_equal_a_sum_of_shifted_inputs(length: int) -> None:
    generator = torch.Generator().manual_seed(3)
    convolution = Convolution(3, 4).double()
    x = torch.randn(2, length, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    convolution.shares.data.copy_(kernel)
    shifted_inputs = [F.pad(x, (0, 0, shift, 0))[:, :length] for shift in range(3)]
    expected = x + sum(shifted * weight for shifted, weight in zip(shifted_inputs, kernel, strict=True))
    torch.testing.assert_close(convolution(x), expected)
    assert torch.autograd.gradcheck(lambda x, _: convolution(x), (x, convolution.shares))


def test_squared_relu_has_the_right_gradient() -> None:
    x = torch.tensor([-2.0, -0.5, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    layer = FeedForward(replace(SMALL, width=4, hidden=4, heads=1, activation="relu2")).double()
    for linear in (layer.up, layer.out):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    torch.testing.assert_close(layer(x), F.relu(x).square())
    assert torch.autograd.gradcheck(layer, (x,))


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = (dict(build_network(SMALL).named_parameters()) for _ in range(2))
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def test_empty_network_keeps_torch_init_functions_working() -> None:
    model = GPT.empty(SMALL, torch.device("cpu"))
    assert model.embedding.weight.shape == (50, 16)
    weight = torch.nn.init.ones_(torch.empty(3))
    assert torch.equal(weight, torch.ones(3))
