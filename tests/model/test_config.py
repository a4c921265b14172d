"""Configurations, presets and their overrides."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, replace

import msgspec
import pytest

from model.config import GPTConfig, TrainConfig, differences, identity, override, resolve_vocab_size
from model.presets import PRESETS, get_preset
from model.settings import SETTINGS, Range
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
        ({"positions": "rotary"}, "gpt_neox"),
        ({"positions": "none"}, "fast"),
        (QWEN3, "qwen3"),
        ({**QWEN3, "kv_heads": 2}, "qwen3"),
        ({**QWEN3, "bias": True}, "fast"),
        ({**QWEN3, "qkv_bias": True}, "fast"),
        ({**QWEN3, "head_dim": 128}, "qwen3"),
        ({**QWEN3, "qk_norm": False}, "llama"),
        ({**QWEN3, "qk_norm": False, "qkv_bias": True}, "qwen2"),
        ({**QWEN3, "qk_norm": False, "qkv_bias": True, "head_dim": 128}, "fast"),
        ({"head_dim": 128}, "fast"),
        ({"activation": "gelu_erf"}, "gpt2"),
        ({**QWEN3, "bigrams": 64}, "fast"),
    ],
    ids=str,
)
def test_the_family_is_a_model_type_of_transformers_or_fast(changes: dict[str, object], family: str) -> None:
    assert replace(GPTConfig(vocab_size=100), **changes).family == family  # type: ignore[arg-type]


def test_settings_that_older_keys_lack_are_part_of_a_key_only_if_set() -> None:
    config = GPTConfig(width=96)
    later = {"head_dim": 8, "norm_epsilon": 1e-6, "ngram": 3}
    assert not later.keys() & identity(config).keys()
    assert identity(config).keys() | later.keys() == asdict(config).keys()
    assert identity(replace(config, **later)) == asdict(config) | later  # type: ignore[arg-type]


def test_differences_list_fields_with_both_values() -> None:
    config = GPTConfig(width=96, heads=6)
    assert differences(config, GPTConfig(width=384, heads=6)) == ["width: 96, not 384"]
    assert differences(config, config) == []


def test_an_unknown_preset_raises_with_the_known_ones() -> None:
    with pytest.raises(BadConfig, match="no preset 'gpt5'") as caught:
        get_preset("gpt5")
    assert caught.value.hint.startswith("use one of: 13m, 2b, babygpt, bigram, ")  # in alphabetical order
    with pytest.raises(BadConfig, match="no preset 'smal'") as caught:
        get_preset("smal")
    assert caught.value.hint.startswith("did you mean small? use one of: ")


def test_overrides_are_converted_and_reach_model_and_training() -> None:
    mini = get_preset("mini")
    changed = override(mini, {"width": "64", "learning_rate": "1e-4", "tied": "false"})
    assert (changed.model.width, changed.train.learning_rate, changed.model.tied) == (64, 1e-4, False)
    assert changed.model.layers == mini.model.layers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widht": "64"}, "unknown setting 'widht'"),
        ({"width": "wide"}, "width must be a whole number from 1 to 1,048,576, got wide"),
        ({"width": "3.5"}, "width must be a whole number"),
        ({"width": "9" * 5000}, "width must be a whole number from 1 to 1,048,576, got 9{60} "),
        ({"width": "30"}, "width must be a multiple of heads, got width 30 and heads 4"),
        ({"kv_heads": "3"}, "heads must be a multiple of kv_heads"),
        ({"layers": "-1"}, "layers must be a whole number from 0 to 10,000, got -1"),
        ({"dropout": "1.5"}, "dropout must be a number from 0 to below 1, got 1.5"),
        ({"tied": "yes"}, "tied must be true or false, got yes"),
        ({"resident": True}, "resident must be one of auto, yes, no, got True"),
        ({"positions": "absolute"}, "positions must be one of learned, rotary, none, got absolute"),
        ({"positions": "rotary", "heads": "32"}, "even head width, got 1"),
        ({"steps": "0"}, "steps must be a whole number from 1 to 99,999,999 steps, got 0"),
        ({"steps": "100000000"}, "steps must be"),  # checkpoints are ordered by eight digits
        ({"beta2": "1"}, "beta2 must be a number from 0 to below 1"),
        ({"softcap": "1e-30"}, "softcap must be 0, or a number from 0.01 to 1,000,000, got 1e-30"),
        ({"softcap": "1e30"}, "softcap must be"),
        ({"minutes": "1e300"}, "minutes must be"),
        ({"seed": str(1 << 31)}, "seed must be"),
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


NUMBERS = [name for name, setting in SETTINGS.items() if isinstance(setting.values, Range)]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", math.nan, math.inf, "1e999"])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_setting_is_infinite_or_nan(name: str, value: object) -> None:
    with pytest.raises(BadConfig, match=f"{name} must be .*, got"):
        override(get_preset("mini"), {"optimizer": "muon", name: value})


def test_the_table_has_every_setting_with_values_of_the_type_of_its_field() -> None:
    fields = {field.name: field.default for config in (GPTConfig, TrainConfig) for field in dataclasses.fields(config)}
    assert list(fields) == list(SETTINGS)
    types = {True: int, False: float}
    for name, setting in SETTINGS.items():
        values = setting.values
        expected = types[values.is_whole] if isinstance(values, Range) else str if values else bool
        assert type(fields[name]) is expected, name
        assert setting.allows(fields[name]), name


@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_each_range_survive_json(name: str) -> None:
    """What is published can be read: a number that JSON cannot hold would come back as null."""
    values = SETTINGS[name].values
    assert isinstance(values, Range)
    for value in (values.low, values.high):
        assert msgspec.json.decode(msgspec.json.encode(value)) == value
    assert values.low in values
    assert (values.high in values) is not values.below
