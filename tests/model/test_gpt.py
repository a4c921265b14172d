"""The network: shapes, sizes, causality, positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import GPTConfig, fit
from model.gpt import GPT, Rotary
from model.presets import PRESETS

SMALL = GPTConfig(vocab_size=50, block_size=16, layers=2, heads=2, width=16)


def made(config: GPTConfig) -> GPT:
    model = GPT(config)
    model.initialise(1)
    return model.eval()


def variants() -> list[GPTConfig]:
    """Every choice of each part once, and all that is special together."""
    parts: list[dict[str, object]] = [
        *({"positions": each} for each in ("learned", "rotary", "none")),
        *({"activation": each} for each in ("gelu", "relu", "relu2", "swiglu")),
        *({each: True} for each in ("qkv_bias", "qk_norm", "scalars", "values", "gates", "input_norm", "head_bias")),
        *({"norm": each, "bias": bias, "qk_norm": True} for each in ("layer", "rms") for bias in (True, False)),
        {"tied": False},
        {"heads": 4, "kv_heads": 2},
        {"hidden": 24},
        {"softcap": 10.0},
        {"bigrams": 64},
        {"convolution": 3},
    ]
    special = {"positions": "rotary", "bias": False, "bigrams": 64, "convolution": 3, "scalars": True, "softcap": 9.0}
    special |= {"values": True, "gates": True, "zero_init": True}
    return [replace(SMALL, **each) for each in (*parts, special)]  # type: ignore[arg-type]


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
    rotary = Rotary(8, 32, 10_000.0)
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(8, generator=generator).expand(1, 1, 32, 8) for _ in range(2))
    scores = (rotary(q) @ rotary(k).transpose(-1, -2))[0, 0]
    for distance in (0, 1, 5):
        diagonal = torch.diagonal(scores, -distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_weights() -> None:
    for (name, one), (_, other) in zip(made(SMALL).named_parameters(), made(SMALL).named_parameters(), strict=True):
        assert torch.equal(one, other), name
