"""Networks with bfloat16 or 8-bit linear layers give nearly the same logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.config import GPTConfig
from model.generation import quantization
from model.network.gpt import Rotary
from model.network.kv_cache import KVCache
from tests.support.networks import SMALL, config_variants, perturbed_network

_BF16 = pytest.param(
    "bf16",
    marks=pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 for this processor"
    ),
)
both_precisions = pytest.mark.parametrize("precision", [_BF16, "int8"])


def new_cache(config: GPTConfig, rows: int) -> KVCache:
    return KVCache(config, rows, torch.float32, torch.device("cpu"))


@both_precisions
@pytest.mark.parametrize("config", config_variants(), ids=str)
@torch.inference_mode()
def test_logits_differ_only_by_the_rounding_of_weights(config: GPTConfig, precision: str) -> None:
    model, ids = perturbed_network(config), torch.arange(12)[None]
    expected = model(ids)
    logits = quantization.prepare_for_decoding(model, precision)(ids)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=0.05 * float(expected.std()) + 0.02, rtol=0.05)


def test_small_networks_are_only_converted_on_request() -> None:
    assert quantization.prepare_for_decoding(perturbed_network(SMALL), "auto").packed_head is None
    assert quantization.prepare_for_decoding(perturbed_network(SMALL), "fp32").packed_head is None
    assert quantization.prepare_for_decoding(perturbed_network(SMALL), "int8").packed_head is not None


@both_precisions
@pytest.mark.parametrize("config", config_variants(), ids=str)
def test_decoding_with_a_cache_equals_a_full_pass(config: GPTConfig, precision: str) -> None:
    model = quantization.prepare_for_decoding(perturbed_network(config), precision)
    ids = torch.arange(12)[None]
    cache = new_cache(config, 1)
    with torch.inference_mode():
        expected = model(ids)[0, 4:]
        model.hidden_states(ids[:, :4], cache=cache.extend(0, 1, 4))
        steps = [model.next_logits(ids[:, position, None], cache.extend(0, 1, 1)) for position in range(4, 12)]
    torch.testing.assert_close(torch.cat(steps), expected, atol=0.05 * float(expected.std()) + 0.02, rtol=0.05)


@both_precisions
@torch.inference_mode()
def test_logits_do_not_depend_on_longer_rows_in_the_batch(precision: str) -> None:
    model = quantization.prepare_for_decoding(perturbed_network(replace(SMALL, block_size=128, width=32)), precision)
    prompts = [torch.arange(1 + 15 * n) * 7 % 49 for n in range(8)]

    def decode(batch: list[torch.Tensor]) -> torch.Tensor:
        cache = new_cache(model.config, len(batch))
        for row, prompt in enumerate(batch):
            model.hidden_states(prompt[None], cache=cache.extend(row, 1, len(prompt)))
        ids = torch.full((len(batch), 1), 5)
        return torch.cat([model.next_logits(ids, cache.extend(0, len(batch), 1)) for _ in range(12)])

    batch_logits = decode(prompts).view(12, len(prompts), -1)
    for row, prompt in enumerate(prompts):
        differs = (decode([prompt]) - batch_logits[:, row]).abs().amax(dim=1) > 1e-5
        assert differs.float().mean() < 0.2, "more than values that happen to round to the other side"


@pytest.mark.parametrize("width", [5, 16, 48, 100])
@torch.inference_mode()
def test_8_bit_weights_are_within_half_a_step_and_zeros_stay_zeros(width: int) -> None:
    weight = torch.randn(20, width) * torch.logspace(-3, 2, 20)[:, None]
    weight[3] = 0
    layer = quantization.Int8Linear(weight)
    dequantized = layer._weight[:, :width] * layer._scales[:, None].float()
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((dequantized - weight).abs() <= 0.51 * step).all())
    columns = layer(torch.eye(width)).float().T  # each weight once
    torch.testing.assert_close(columns, dequantized, rtol=2**-8, atol=0)  # bfloat16's rounding of the output
    assert torch.equal(columns[3], torch.zeros(width))


@torch.inference_mode()
def test_bfloat16_weights_keep_the_rotary_angles_in_fp32() -> None:
    model = quantization.to_bfloat16(perturbed_network(replace(SMALL, positions="rotary", block_size=2048)))
    assert model.rotary
    positions = torch.arange(1000, 1010)[None]
    expected_pair = Rotary(8, 2048, 10_000.0).at(positions)
    for angles, expected in zip(model.rotary.at(positions), expected_pair, strict=True):
        assert torch.equal(angles, expected)
    assert model(torch.arange(12)[None]).dtype == torch.float32


def test_an_untied_head_is_packed_once() -> None:
    model = quantization.pack(perturbed_network(replace(SMALL, tied=False)), quantization.Int8Linear)
    assert model.packed_head is model.head
