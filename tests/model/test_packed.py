"""Linear layers packed for generating say nearly what they said before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model import packed
from model.config import GPTConfig
from model.generate import SampleOptions, sample
from model.gpt import Rotary
from pipeline.tokenizers import Integers
from tests.networks import SMALL, stirred, variants

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 for oneDNN"
)


@pytest.mark.parametrize("config", variants(), ids=str)
@torch.inference_mode()
def test_packed_layers_give_the_logits_up_to_the_rounding_of_their_weights(config: GPTConfig) -> None:
    model, ids = stirred(config), torch.arange(12)[None]
    before = model(ids)
    after = packed.pack(model)(ids)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before, atol=0.05 * float(before.std()) + 0.02, rtol=0.05)


def test_small_networks_are_left_alone_unless_asked() -> None:
    assert packed.quick(stirred(SMALL), "auto").packed_head is None
    assert packed.quick(stirred(SMALL), "fp32").packed_head is None
    assert packed.quick(stirred(SMALL), "bf16").packed_head is not None


def test_a_packed_model_samples() -> None:
    options = SampleOptions(max_tokens=30, temperature=1)
    made = sample(packed.pack(stirred(SMALL)), Integers(50), [("", [1, 2, 3])], options)
    assert len(made[0].token_ids) == 30


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
