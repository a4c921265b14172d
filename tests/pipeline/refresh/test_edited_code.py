"""A refresh after an edit of the source code: the stage is stale and names the file; and --rebuild."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.refresh.recipe import Recipe
from pipeline.refresh.refresh import RefreshResult
from tests.pipeline.refresh.test_refresh import make_plan, recipe, run, stage
from tests.support.editing import edit, reread, sources

__all__ = ["sources"]

HEADINGS, WRITER = "pipeline/clean/rules/headings.py", "pipeline/tokens/writer.py"
CHARACTERS = "pipeline/tokenizers/characters.py"


@pytest.fixture
def book(tmp_path: Path) -> Recipe:
    folder = tmp_path / "texts"
    folder.mkdir()
    sentence = "话说天下大势，分久必合，合久必分。"
    pages = "\n".join(f"第{number}回　起\n{sentence}众人起身{number}。" for number in range(1, 80))
    (folder / "book.txt").write_text(pages, encoding="utf-8")
    return recipe(folder, tmp_path)


def refresh(root: Path, book: Recipe, **options: object) -> RefreshResult:
    return run(root, book, stage(root, []), through="tokenize", **options)


def test_an_edited_rule_makes_the_recipe_stale(root: Path, book: Recipe, sources: Path) -> None:
    refresh(root, book)
    edit(sources / HEADINGS)
    steps = {step.stage: step for step in make_plan(root, book, stage(root, []), through="tokenize").steps}
    assert (steps["clean"].result, steps["clean"].why) == ("stale", f"{HEADINGS} was edited")
    built = refresh(root, book)
    assert [step.result for step in built.steps] == ["unchanged", "built", "unchanged", "built"]
    assert [step.note for step in built.steps] == ["", f"built with your {HEADINGS}", "", ""]
    again = refresh(root, book)
    assert again.result == "unchanged"
    assert again.steps[1].note == f"built with your {HEADINGS}"


def test_an_edit_that_is_taken_back_returns_to_the_released_generation(root: Path, book: Recipe, sources: Path) -> None:
    released = refresh(root, book).last
    original = (sources / HEADINGS).read_bytes()
    edit(sources / HEADINGS)
    refresh(root, book)
    (sources / HEADINGS).write_bytes(original)
    reread()
    assert released
    assert refresh(root, book).last == released


def test_units_of_other_code_are_not_reused(root: Path, book: Recipe, sources: Path) -> None:
    first = refresh(root, book).last
    edit(sources / WRITER)
    second = refresh(root, book).last
    assert first
    assert second
    names = [record.name for record in first.manifest.files if record.name.endswith(".bin")]
    assert names
    assert all(not first.file(name).samefile(second.file(name)) for name in names)


def test_rebuild_builds_every_stage_but_a_kept_tokenizer_and_keeps_equal_bytes(root: Path, book: Recipe) -> None:
    first = refresh(root, book)
    plan = make_plan(root, book, stage(root, []), through="tokenize", rebuild=True)
    assert [(step.result, step.why) for step in plan.steps[1:]] == [
        ("stale", "--rebuild"),
        ("fresh", ""),
        ("stale", "clean is stale"),
    ]
    rebuilt = refresh(root, book, rebuild=True)
    assert rebuilt.result == "unchanged"
    assert [step.note for step in rebuilt.steps[1:]] == [
        "rebuilt with the same bytes",
        "",
        "rebuilt with the same bytes",
    ]
    assert rebuilt.last == first.last


def test_a_kept_tokenizer_is_said_to_be_of_other_code(root: Path, book: Recipe, sources: Path) -> None:
    refresh(root, book)
    edit(sources / CHARACTERS)
    steps = {step.stage: step for step in make_plan(root, book, stage(root, []), through="tokenize").steps}
    assert steps["train-tokenizer"].result == "fresh"
    assert steps["train-tokenizer"].why == f"kept though {CHARACTERS} was edited; --retrain-tokenizer trains it again"
