"""The choice of a preset for a text, a device and a length."""

from __future__ import annotations

import json

import pytest

import cli
from model.config import Preset, override, resolve_vocab_size
from model.presets import PRESETS, Choice, choose, get_preset
from pipeline.errors import BadData

TEXTS = {"40 kB": (11_000, 1_000), "1 MB": (250_000, 4_000), "300 MB": (75_000_000, 16_000)}


def resolved(choice: Choice, vocab_size: int) -> Preset:
    preset = override(get_preset(choice.preset), choice.settings)
    return Preset(preset.family, preset.source, resolve_vocab_size(preset.model, vocab_size), preset.train)


def test_small_is_taken_for_a_novel_in_the_default_time_and_ends_before_it_overfits() -> None:
    choice = choose(250_000, 4_000, "cpu")
    assert (choice.preset, choice.settings, choice.minutes) == ("small", {"epochs": 8.0}, 5.0)
    assert "250,000 training tokens" in choice.reason


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize(("tokens", "vocab_size"), [*TEXTS.values(), (500, 300), (250_000, 151_643)])
def test_every_choice_can_be_exported_and_trained(tokens: int, vocab_size: int, device: str) -> None:
    for minutes in (None, 0.5, 60.0, 3_000.0):
        choice = choose(tokens, vocab_size, device, minutes)
        preset = resolved(choice, vocab_size)
        assert preset.model.family == "qwen3"
        assert preset.model.block_size < tokens
        assert choice.minutes == (minutes or 5.0)
        assert all(getattr(PRESETS["small"].model, name, None) != value for name, value in choice.settings.items())


def test_the_command_lists_every_preset_with_the_formats_that_it_can_be_exported_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.training.trial.measure_flops", lambda preset, device: 1e10)
    assert cli.main(["presets", "--json"]) == 0
    exports = {row["name"]: row["exports"] for row in json.loads(capsys.readouterr().out)["presets"]}
    assert list(exports) == list(PRESETS)
    assert {exports[name] for name in ("mini", "sample", "small")} == {"transformers, GGUF"}
    assert exports["shuihu-fast"] == "transformers"


def test_short_text_gets_a_smaller_network() -> None:
    short, novel = (resolved(choose(*TEXTS[name], "cpu"), TEXTS[name][1]) for name in ("40 kB", "1 MB"))
    assert short.model.parameters < novel.model.parameters / 4


@pytest.mark.parametrize(("name", "minutes", "epochs"), [("40 kB", 1, 8), ("1 MB", 1, 8), ("300 MB", 60, 0)])
def test_epochs_are_limited_where_a_fast_machine_could_see_the_text_often(
    name: str, minutes: float, epochs: float
) -> None:
    assert resolved(choose(*TEXTS[name], "cpu", minutes), TEXTS[name][1]).train.epochs == epochs


def test_more_minutes_than_a_text_is_good_for_change_nothing_and_the_reason_says_it() -> None:
    ten, thirty = (choose(*TEXTS["1 MB"], "cpu", minutes) for minutes in (10, 30))
    assert ten.settings == thirty.settings
    assert thirty.reason == "250,000 training tokens, at most 8 epochs (more would overfit); dropout 0.2"


def test_estimate_has_two_digits() -> None:
    estimated = choose(78_930, 4_000, "cpu", is_estimate=True)
    assert estimated.reason.startswith("about 79,000 training tokens")
    assert choose(78_930, 4_000, "cpu").settings == estimated.settings


@pytest.mark.parametrize(("minutes", "dropout"), [(0.5, 0.0), (5.0, 0.1), (30.0, 0.2), (120.0, 0.2)])
def test_dropout_follows_the_epochs_of_a_novel_and_the_reason_says_it(minutes: float, dropout: float) -> None:
    choice = choose(*TEXTS["1 MB"], "cpu", minutes)
    assert resolved(choice, 4_000).model.dropout == dropout
    assert ("dropout" in choice.reason) == (dropout != 0.1)
    assert dropout == 0.1 or f"; dropout {dropout:g}" in choice.reason
    assert "min" not in choice.reason


def test_a_novel_gets_a_smaller_network_for_one_minute_on_a_cpu_than_for_five() -> None:
    one, five = (resolved(choose(*TEXTS["1 MB"], "cpu", minutes), 4_000) for minutes in (1, 5))
    assert (one.model.layers, one.model.width) == (4, 192)
    assert one.model.parameters < five.model.parameters / 2
    assert "4 layers, 192 wide" in choose(*TEXTS["1 MB"], "cpu", 1).reason


def test_block_fits_eight_times_into_the_text() -> None:
    assert [choose(tokens, 300, "cpu").settings["block_size"] for tokens in (64, 100, 300)] == [8, 8, 32]


def test_text_of_fewer_tokens_than_eight_small_blocks_is_refused() -> None:
    message = "63 training tokens are too few for a model: at least 64 are needed, 8 blocks of 8"
    with pytest.raises(BadData, match=message):
        choose(63, 300, "cpu")


def test_long_text_gets_a_larger_network_only_with_more_time_or_a_gpu() -> None:
    sizes = [
        resolved(choose(*TEXTS["300 MB"], device, minutes), 16_000).model.parameters
        for device, minutes in (("cpu", 5), ("cpu", 120), ("cuda", 5))
    ]
    assert sizes == sorted(set(sizes))
    assert choose(*TEXTS["300 MB"], "cpu").settings == {"dropout": 0.0}


def test_large_vocabulary_gets_a_narrower_network_on_a_cpu_and_says_so() -> None:
    choice = choose(250_000, 151_643, "cpu")
    assert choice.settings["width"] < get_preset("small").model.width
    assert "151,643 ids" in choice.reason


def test_network_fits_into_half_of_the_memory() -> None:
    free = 2 << 30
    choice = choose(10**9, 50_257, "cuda", 600, free)
    assert 16 * resolved(choice, 50_257).model.parameters < free / 2
    assert resolved(choose(10**9, 50_257, "cuda", 600), 50_257).model.width == 768
