"""Recipes: parsing, overrides and errors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from model.commands.refresh import check_training
from model.presets import PRESETS
from pipeline.clean.options import CleanOptions
from pipeline.errors import BadConfig, InputMissing
from pipeline.refresh import recipe as recipes
from pipeline.refresh import recipe_keys
from pipeline.refresh.recipe import Recipe
from pipeline.sources.catalogue import CATALOGUE

RECIPES = Path(__file__).resolve().parents[3] / "pipeline" / "recipes"
SMALL = """
name = "small"
[download]
source = "sample"
[tokenizer]
kind = "char"
[tokenize]
val_fraction = 0.1
[train]
preset = "sample"
"""


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_bundled_recipe_loads_and_names_existing_source_and_preset(path: Path) -> None:
    recipe = recipes.load(path)
    assert recipe.name == path.stem
    assert recipe.download.source in CATALOGUE
    assert recipe.train.preset in PRESETS
    assert recipe.sample.prompts


def test_overrides_replace_entries_and_are_converted(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, SMALL)
    recipe = recipes.load(path, ["train.minutes=0.5", "train.set.width=64", "download.source=/some/book.txt"])
    assert recipe.train.minutes == 0.5
    assert recipe.train.set == {"width": "64"}
    assert recipe.download.source == "/some/book.txt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL.replace("[tokenize]", "[tokenise]"), "tokenise"),
        (SMALL.replace("val_fraction", "val_share"), "val_share"),
        (SMALL.replace("0.1", '"much"'), "tokenize.val_fraction"),
        (SMALL.replace('source = "sample"', ""), "download.source: required"),
        (SMALL.replace('kind = "char"', 'encoder = "auto"'), r"tokenizer.encoder: .*did you mean tokenize\.encoder\?"),
        (SMALL.replace('kind = "char"', 'kind = "chars"'), "tokenizer.kind: unknown tokenizer kind 'chars'"),
        (SMALL + "[clean]\nmin_han = 2\n", r"clean.min_han: min_han must be in \[0, 1\]"),
        ('surce = "sample"\n' + SMALL, r"surce: unknown key here \(did you mean download\.source\?\)"),
        ('name = "small"\n', "download: required"),
        ("clean = 3\n" + SMALL, "clean: Expected `object"),
        (SMALL.replace('"small"', '"../small"'), "is not a valid artifact name"),
        ("name = ", "not TOML"),
        ("\x00", "not TOML"),
    ],
)
def test_invalid_recipe_raises_bad_config_with_position(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadConfig, match=message) as caught:
        recipes.load(write_recipe(tmp_path, text))
    assert caught.value.exit_code == 78


def test_all_errors_are_reported_at_once_with_their_dotted_paths(tmp_path: Path) -> None:
    text = (
        'name = "small"\nsource = "sample"\n[download]\nsource = [3]\n[clean]\nunit = "page"\nquote = "keep"\n'
        "[tokenizer]\nvocab_size = []\n[tokenize]\nval_fraction = 2.0\nmin_chars = -1\n"
        '[train]\npreset = "sample"\n[train.set]\nwidht = 64\nheads = 4\nsteps = -3\n'
    )
    with pytest.raises(BadConfig) as caught:
        recipes.load(write_recipe(tmp_path, text), check_training=check_training)
    heading, _, messages = caught.value.message.partition(" errors: ")
    assert heading == f"{tmp_path / 'small.toml'}: 9"
    assert [re.split(": | \\(", message)[0] for message in messages.split("; ")] == [
        *("source", "download.source[0]", "clean.unit", "clean.quote", "tokenizer.vocab_size"),
        *("tokenize.val_fraction", "tokenize.min_chars", "train.set.widht", "train.set.steps"),
    ]
    assert "source: unknown key here (did you mean download.source?)" in messages
    assert "clean.quote: unknown key (did you mean quotes?)" in messages


def test_settings_that_only_fit_together_are_no_error(tmp_path: Path) -> None:
    text = '[download]\nsource = "sample"\n[train]\npreset = "small"\nminutes = 0.2\n'
    text += "[train.set]\nlayers = 4\nheads = 3\nwidth = 192\n"
    path = write_recipe(tmp_path, text + "kv_heads = 3\n")
    assert recipes.load(path, check_training=check_training).train.set["heads"] == 3
    with pytest.raises(BadConfig, match=r"toml: train\.set\.heads: heads must be a multiple of kv_heads, got heads 3"):
        recipes.load(write_recipe(tmp_path, text + "kv_heads = 2\n"), check_training=check_training)


def test_only_a_source_is_required(tmp_path: Path) -> None:
    path = tmp_path / "my book.toml"
    path.write_text('[download]\nsource = "sample"\n', encoding="utf-8")
    recipe = recipes.load(path)
    assert (recipe.name, recipe.clean) == ("my-book", CleanOptions())
    assert (recipe.tokenizer.kind, recipe.train.preset) == ("bpe", "auto")
    path.write_text('[download]\nsource = "sample"\n[tokenizer]\nuse = "r50k_base"\n', encoding="utf-8")
    assert recipes.load(path).clean is None


@pytest.mark.parametrize("change", [lambda data: b"\xef\xbb\xbf" + data, lambda data: data.replace(b"\n", b"\r\n")])
def test_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = write_recipe(tmp_path, SMALL)
    expected = recipes.load(path)
    path.write_bytes(change(SMALL.encode()))
    assert recipes.load(path) == expected


def test_relative_paths_start_at_the_folder_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    for name in (folder, elsewhere):
        name.mkdir()
        (name / "variants.tsv").write_text("爲\t為\n", encoding="utf-8")
        (name / "pua.tsv").write_text("\ue10e\t木\n", encoding="utf-8")
        (name / "novel.txt").write_text("话说", encoding="utf-8")
    (elsewhere / "only-here.txt").write_text("话说", encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    path = write_recipe(
        folder,
        '[download]\nsource = ["novel.txt", "only-here.txt", "sample", "https://texts.example/a.txt", "hf:a/b"]\n'
        '[clean]\nvariants = "variants.tsv"\npua_map = "./pua.tsv"\n[tokenizer]\nuse = "../spm.model"\n',
    )
    recipe = recipes.load(os.path.relpath(path))
    remote = ("sample", "https://texts.example/a.txt", "hf:a/b")
    assert recipe.download.source == (str(folder / "novel.txt"), str(folder / "only-here.txt"), *remote)
    assert recipe.clean
    assert (recipe.clean.variants, recipe.clean.pua_map) == (str(folder / "variants.tsv"), str(folder / "pua.tsv"))
    assert recipe.tokenizer.use == str(tmp_path / "spm.model")
    assert recipes.load(path, ["clean.variants=variants.tsv"]).clean.variants == "variants.tsv"  # type: ignore[union-attr]


def test_every_key_is_described() -> None:
    sections: list[type[msgspec.Struct]] = [Recipe, *recipe_keys.section_types(Recipe).values()]
    for section in sections:
        described = recipe_keys.descriptions(section)
        plain = set(section.__struct_fields__) - set(recipe_keys.section_types(section))
        assert set(described) == plain, section
        assert all("  " not in text for text in described.values())


@pytest.mark.parametrize("override", ["minutes=3", "train.minutes", "train=3", "=", "train.preset.x=1", "name.x=1"])
def test_invalid_override_raises_bad_config(tmp_path: Path, override: str) -> None:
    with pytest.raises(BadConfig):
        recipes.load(write_recipe(tmp_path, SMALL), [override])


def test_missing_recipe_raises_input_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        recipes.load(tmp_path / "none.toml")


def test_steps_and_minutes_replace_each_other(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, SMALL + "minutes = 30\n")
    recipe = recipes.load(path, ["train.steps=5"])
    assert (recipe.train.steps, recipe.train.minutes) == (5, None)
