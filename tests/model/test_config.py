"""Presets and their overrides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.config import GPTConfig, differences, fit, override
from model.presets import PRESETS, preset
from pipeline.errors import BadConfig

QWEN3 = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "qk_norm": True, "bias": False}


def test_every_preset_says_where_its_numbers_come_from() -> None:
    assert all(len(each.source) > 20 for each in PRESETS.values())


def test_every_preset_says_which_family_it_is_of() -> None:
    assert {name: each.family for name, each in PRESETS.items()} == {
        name: each.model.family for name, each in PRESETS.items()
    }


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "gpt2"),
        ({"qkv_bias": True, "tied": False, "bias": False}, "gpt2"),
        ({"activation": "relu2"}, "fast"),
        ({"softcap": 15.0}, "fast"),
        ({"heads": 6, "kv_heads": 2}, "fast"),
        ({"positions": "rotary"}, "fast"),
        (QWEN3, "qwen3"),
        ({**QWEN3, "kv_heads": 2}, "qwen3"),
        ({**QWEN3, "bias": True}, "fast"),
        ({**QWEN3, "bigrams": 64}, "fast"),
    ],
    ids=str,
)
def test_a_family_is_what_another_program_can_load(changes: dict[str, object], family: str) -> None:
    assert replace(GPTConfig(vocab_size=100), **changes).family == family  # type: ignore[arg-type]


def test_differences_name_the_fields_with_both_values() -> None:
    one = GPTConfig(width=96, heads=6)
    assert differences(one, GPTConfig(width=384, heads=6)) == ["width: 96, not 384"]
    assert differences(one, one) == []


def test_an_unknown_preset_is_answered_with_the_list() -> None:
    with pytest.raises(BadConfig, match="no preset 'gpt5'") as caught:
        preset("gpt5")
    assert "shuihu-8m-rope" in caught.value.hint


def test_overrides_reach_the_model_and_the_training_and_are_typed() -> None:
    made = override(preset("mini"), {"width": "64", "learning_rate": "1e-4", "tied": "false"})
    assert (made.model.width, made.train.learning_rate, made.model.tied) == (64, 1e-4, False)
    assert made.model.layers == preset("mini").model.layers


@pytest.mark.parametrize(
    "settings",
    [
        {"widht": "64"},
        {"width": "wide"},
        {"width": "30"},
        {"dropout": "1.5"},
        {"positions": "absolute"},
        {"steps": "0"},
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(BadConfig):
        override(preset("mini"), settings)


def test_the_tokenizer_fills_in_the_vocabulary_or_must_fit_in_it() -> None:
    assert fit(GPTConfig(vocab_size=0), 8000).vocab_size == 8000
    assert fit(GPTConfig(vocab_size=50_304), 50_257).vocab_size == 50_304
    with pytest.raises(BadConfig, match="8,000 ids"):
        fit(GPTConfig(vocab_size=100), 8000)
