"""Recipes with several sources: a corpus for each, and only a new one is cleaned and tokenized."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import BadConfig
from pipeline.refresh import recipe as recipes
from pipeline.refresh import sources
from pipeline.refresh.recipe import DownloadSection
from pipeline.store import artifact
from tests.pipeline.refresh.test_refresh import make_plan, results, run, stage

RECIPE = """
name = "mine"
[download]
source = [{sources}]
[clean]
unit = "paragraph"
[tokenizer]
kind = "char"
vocab_size = 0
keep = true
[tokenize]
val_fraction = 0.1
[train]
preset = "sample"
"""


def write_recipe(folder: Path, *names: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(RECIPE.format(sources=", ".join(f'"{name}"' for name in names)), encoding="utf-8")
    return path


def write_texts(folder: Path) -> None:
    lines = "\n\n".join(f"却说阿渊携砚来到江边，见一老渔翁坐在船头饮酒，第{number}次。" for number in range(200))
    (folder / "a.txt").write_text(lines, encoding="utf-8")
    (folder / "posts").mkdir()
    (folder / "posts" / "b.txt").write_text(lines.replace("江边", "山中"), encoding="utf-8")


def test_each_source_becomes_a_corpus(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(tmp_path)
    recipe = recipes.load(write_recipe(tmp_path, "a.txt", "posts"))
    monkeypatch.chdir(root.parent.parent)  # relative paths start at the recipe's folder
    first = run(root, recipe, stage(root, []))
    assert list(results(first)) == ["download", "clean", "clean posts", "train-tokenizer", "tokenize", "train"]
    assert set(results(first).values()) == {"built"}
    assert artifact.find(root, "corpora", "mine").manifest.counts["documents"] == 200
    assert artifact.find(root, "corpora", "mine.posts").manifest.counts["documents"] == 200
    assert set(results(run(root, recipe, stage(root, []))).values()) == {"unchanged"}


def test_added_source_leaves_the_others_and_the_tokenizer(root: Path, tmp_path: Path) -> None:
    write_texts(tmp_path)
    trained_on: list[str] = []
    run(root, recipes.load(write_recipe(tmp_path, "a.txt")), stage(root, trained_on))
    tokenizer = artifact.find(root, "tokenizers", "mine")
    old = artifact.find(root, "tokens", "mine")

    more = recipes.load(write_recipe(tmp_path, "a.txt", "posts"))
    planned = {step.stage: (step.result, step.why) for step in make_plan(root, more, stage(root, [])).steps}
    assert planned["clean"][0] == planned["train-tokenizer"][0] == "fresh"
    assert planned["clean posts"] == ("stale", "download is stale")
    assert planned["tokenize"] == ("stale", "clean posts is stale")

    refreshed = run(root, more, stage(root, trained_on))
    assert [step.stage for step in refreshed.steps if step.result == "built"] == [
        *("download", "clean posts", "tokenize", "train")
    ]
    assert artifact.find(root, "tokenizers", "mine") == tokenizer
    new = artifact.find(root, "tokens", "mine")
    assert [entry.digest for entry in new.manifest.inputs][:1] == [entry.digest for entry in old.manifest.inputs][:1]
    first_file = next(record.name for record in new.manifest.files if record.name.endswith(".bin"))
    assert new.file(first_file).samefile(old.file(first_file))  # a hard link: not tokenized again
    assert len(trained_on) == 2


def test_sources_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("山色青青", encoding="utf-8")
    section = DownloadSection((str(tmp_path / "one" / "a.txt"), str(tmp_path / "two" / "a.txt")))
    source, groups = sources.resolve("mine", section, tmp_path / "artifacts")
    assert [file.name for file in source.files] == ["a/a.txt", "a-2/a.txt"]
    assert [group.corpus_name("mine") for group in groups] == ["mine", "mine.a-2"]


def test_empty_list_of_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="empty list"):
        sources.resolve("mine", DownloadSection(()), tmp_path)
