"""Linear layers packed for generating say nearly what they said before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model import packed
from model.cache import Cache
from model.config import GPTConfig
from model.generate import SampleOptions, sample
from model.gpt import Rotary
from pipeline.tokenizers import Integers
from tests.networks import SMALL, stirred, variants

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 for oneDNN"
)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
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
    assert packed.quick(stirred(SMALL), "bf16").packed_head is not None


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("config", variants(), ids=str)
def test_a_packed_model_remembers_what_it_has_computed(config: GPTConfig, precision: str) -> None:
    model = packed.quick(stirred(config), precision)
    ids = torch.arange(12)[None]
    cache = Cache(config, 1, torch.float32, torch.device("cpu"), model.kept_dtype)
    with torch.inference_mode():
        at_once = model(ids)[0, 4:]
        model.states(ids[:, :4], past=cache.read(0, 1, 4))
        one_by_one = torch.cat([model.following(ids[:, place, None], cache.read(0, 1, 1)) for place in range(4, 12)])
    torch.testing.assert_close(one_by_one, at_once, atol=0.05 * float(at_once.std()) + 0.02, rtol=0.05)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_packed_model_gives_a_text_the_same_alone_and_among_others(precision: str) -> None:
    model, tokenizer = packed.quick(stirred(SMALL), precision), Integers(50)
    options = SampleOptions(max_tokens=30, temperature=1)
    prompts = [("", list(range(1, 2 + n))) for n in range(8)]
    together = [each.token_ids for each in sample(model, tokenizer, prompts, options)]
    alone = [
        sample(model, tokenizer, [prompt], replace(options, seed=options.seed + n))[0].token_ids
        for n, prompt in enumerate(prompts)
    ]
    assert together == alone


@pytest.mark.parametrize("width", [5, 16, 48, 100])
@torch.inference_mode()
def test_8_bits_are_within_half_a_step_of_each_weight_and_zeros_stay_zeros(width: int) -> None:
    weight = torch.randn(20, width) * torch.logspace(-3, 2, 20)[:, None]
    weight[3] = 0
    columns = packed.Int8Linear(weight)(torch.eye(width)).float().T  # each weight once
    assert torch.equal(columns[3], torch.zeros(width))
    error = (columns - weight).abs() / weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-9)
    assert float(error.max()) < 0.5 / 127 + 2**-8  # and bfloat16's rounding of what is given


@torch.inference_mode()
def test_halved_weights_leave_the_positions_as_they_are() -> None:
    model = packed.halved(stirred(replace(SMALL, positions="rotary", block_size=2048)))
    assert model.rotary
    positions = torch.arange(1000, 1010)[None]
    for found, expected in zip(model.rotary.at(positions), Rotary(8, 2048, 10_000.0).at(positions), strict=True):
        assert torch.equal(found, expected)
    assert model(torch.arange(12)[None]).dtype == torch.float32


def test_an_untied_head_is_packed_once() -> None:
    model = packed.pack(stirred(replace(SMALL, tied=False)))
    assert model.packed_head is model.head
