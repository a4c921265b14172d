"""Presets and their overrides."""

from __future__ import annotations

import pytest

from model.config import GPTConfig, fit, override
from model.presets import PRESETS, preset
from pipeline.errors import BadConfig


def test_every_preset_says_where_its_numbers_come_from() -> None:
    assert all(len(each.source) > 20 for each in PRESETS.values())


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
