"""Linear layers packed for generating say nearly what they said before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import GPTConfig
from model.generation import quantization as packed
from model.network.gpt import Rotary
from model.network.kv_cache import Cache
from tests.support.networks import SMALL, stirred, variants

_BF16 = pytest.param(
    "bf16",
    marks=pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 for oneDNN"
    ),
)
both = pytest.mark.parametrize("precision", [_BF16, "int8"])


@both
@pytest.mark.parametrize("config", variants(), ids=str)
@torch.inference_mode()
def test_packed_layers_give_the_logits_up_to_the_rounding_of_their_weights(config: GPTConfig, precision: str) -> None:
    model, ids = stirred(config), torch.arange(12)[None]
    before = model(ids)
    after = packed.quick(model, precision)(ids)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before, atol=0.05 * float(before.std()) + 0.02, rtol=0.05)


def test_small_networks_are_left_alone_unless_asked() -> None:
    assert packed.quick(stirred(SMALL), "auto").packed_head is None
    assert packed.quick(stirred(SMALL), "fp32").packed_head is None
    assert packed.quick(stirred(SMALL), "int8").packed_head is not None


@both
@pytest.mark.parametrize("config", variants(), ids=str)
def test_a_packed_model_remembers_what_it_has_computed(config: GPTConfig, precision: str) -> None:
    model = packed.quick(stirred(config), precision)
    ids = torch.arange(12)[None]
    cache = Cache(config, 1, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        at_once = model(ids)[0, 4:]
        model.states(ids[:, :4], past=cache.read(0, 1, 4))
        one_by_one = torch.cat([model.following(ids[:, place, None], cache.read(0, 1, 1)) for place in range(4, 12)])
    torch.testing.assert_close(one_by_one, at_once, atol=0.05 * float(at_once.std()) + 0.02, rtol=0.05)


@both
@torch.inference_mode()
def test_a_longer_neighbour_changes_no_logits(precision: str) -> None:
    model = packed.quick(stirred(replace(SMALL, block_size=128, width=32)), precision)
    texts = [torch.arange(1 + 15 * n) * 7 % 49 for n in range(8)]

    def follow(chosen: list[torch.Tensor]) -> torch.Tensor:
        cache = Cache(model.config, len(chosen), torch.float32, torch.device("cpu"))
        for row, text in enumerate(chosen):
            model.states(text[None], past=cache.read(row, 1, len(text)))
        ids = torch.full((len(chosen), 1), 5)
        return torch.cat([model.following(ids, cache.read(0, len(chosen), 1)) for _ in range(12)])

    together = follow(texts).view(12, len(texts), -1)
    for row, text in enumerate(texts):
        differs = (follow([text]) - together[:, row]).abs().amax(dim=1) > 1e-5
        assert differs.float().mean() < 0.2, "but for what falls on the other side of a rounding"


@pytest.mark.parametrize("width", [5, 16, 48, 100])
@torch.inference_mode()
def test_8_bits_are_within_half_a_step_of_each_weight_and_zeros_stay_zeros(width: int) -> None:
    weight = torch.randn(20, width) * torch.logspace(-3, 2, 20)[:, None]
    weight[3] = 0
    layer = packed.Int8Linear(weight)
    kept = layer._weight[:, :width] * layer._scales[:, None].float()
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((kept - weight).abs() <= 0.51 * step).all())
    columns = layer(torch.eye(width)).float().T  # each weight once
    torch.testing.assert_close(columns, kept, rtol=2**-8, atol=0)  # bfloat16's rounding of what is given
    assert torch.equal(columns[3], torch.zeros(width))


@torch.inference_mode()
def test_halved_weights_leave_the_positions_as_they_are() -> None:
    model = packed.halved(stirred(replace(SMALL, positions="rotary", block_size=2048)))
    assert model.rotary
    positions = torch.arange(1000, 1010)[None]
    for found, expected in zip(model.rotary.at(positions), Rotary(8, 2048, 10_000.0).at(positions), strict=True):
        assert torch.equal(found, expected)
    assert model(torch.arange(12)[None]).dtype == torch.float32


def test_an_untied_head_is_packed_once() -> None:
    model = packed.pack(stirred(replace(SMALL, tied=False)), packed.Int8Linear)
    assert model.packed_head is model.head
