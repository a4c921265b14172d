"""Recipes: parsing, overrides and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.presets import PRESETS
from pipeline.errors import BadConfig, InputMissing
from pipeline.refresh import recipe as recipes
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
        (SMALL.replace('name = "small"', ""), "name"),
        (SMALL.replace('"small"', '"../small"'), "is not a valid artifact name"),
        ("name = ", "not TOML"),
        ("\x00", "not TOML"),
    ],
)
def test_invalid_recipe_raises_bad_config_with_position(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadConfig, match=message) as caught:
        recipes.load(write_recipe(tmp_path, text))
    assert caught.value.exit_code == 78


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
