"""Configurations, presets and their overrides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.config import GPTConfig, differences, override, resolve_vocab_size
from model.presets import PRESETS, get_preset
from pipeline.errors import BadConfig

QWEN3 = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "qk_norm": True, "bias": False}


def test_every_preset_names_the_source_of_its_numbers() -> None:
    assert all(len(entry.source) > 20 for entry in PRESETS.values())


@pytest.mark.parametrize("name", PRESETS)
def test_the_family_of_a_preset_is_that_of_its_model(name: str) -> None:
    assert PRESETS[name].family == PRESETS[name].model.family


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
def test_the_family_is_a_model_type_of_transformers_or_fast(changes: dict[str, object], family: str) -> None:
    assert replace(GPTConfig(vocab_size=100), **changes).family == family  # type: ignore[arg-type]


def test_differences_list_fields_with_both_values() -> None:
    config = GPTConfig(width=96, heads=6)
    assert differences(config, GPTConfig(width=384, heads=6)) == ["width: 96, not 384"]
    assert differences(config, config) == []


def test_an_unknown_preset_raises_with_the_known_ones() -> None:
    with pytest.raises(BadConfig, match="no preset 'gpt5'") as caught:
        get_preset("gpt5")
    assert "shuihu-8m-rope" in caught.value.hint


def test_overrides_are_converted_and_reach_model_and_training() -> None:
    mini = get_preset("mini")
    changed = override(mini, {"width": "64", "learning_rate": "1e-4", "tied": "false"})
    assert (changed.model.width, changed.train.learning_rate, changed.model.tied) == (64, 1e-4, False)
    assert changed.model.layers == mini.model.layers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widht": "64"}, "unknown setting 'widht'"),
        ({"width": "wide"}, "width=wide"),
        ({"width": "30"}, "width must be a multiple of heads, got width 30 and heads 4"),
        ({"kv_heads": "3"}, "heads must be a multiple of kv_heads"),
        ({"layers": "-1"}, "layers, .* must be 0 or more"),
        ({"dropout": "1.5"}, r"must be in \[0, 1\)"),
        ({"positions": "absolute"}, "unknown positions 'absolute'"),
        ({"positions": "rotary", "heads": "32"}, "even head width, got 1"),
        ({"steps": "0"}, "must be 1 or more"),
        ({"beta2": "1"}, r"beta2, .* must be in \[0, 1\)"),
    ],
    ids=str,
)
def test_invalid_settings_raise_bad_config(settings: dict[str, str], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        override(get_preset("mini"), settings)


def test_the_vocabulary_size_is_filled_in_or_must_be_large_enough() -> None:
    assert resolve_vocab_size(GPTConfig(vocab_size=0), 8000).vocab_size == 8000
    assert resolve_vocab_size(GPTConfig(vocab_size=50_304), 50_257).vocab_size == 50_304
    with pytest.raises(BadConfig, match="8,000 ids"):
        resolve_vocab_size(GPTConfig(vocab_size=100), 8000)
