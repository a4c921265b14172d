"""The recipe of an artifact: refreshed in an empty store, it gives the same keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

from pipeline.clean import stage as clean_stage
from pipeline.clean.options import CleanOptions
from pipeline.errors import BadConfig, InputMissing
from pipeline.refresh import recipe as recipes
from pipeline.refresh import refresh
from pipeline.refresh.plan import RefreshOptions
from pipeline.refresh.stages import TrainStage
from pipeline.runtime.progress import SilentProgress
from pipeline.sources import inputs
from pipeline.start import history, recipe_file
from pipeline.store import artifact
from pipeline.store.artifact import Artifact

HEADER = ["The recipe of something."]
CLEAN = """
[clean]
unit = "paragraph"
quotes = "corner"
variants = "variants.txt"
notes = ["（）=drop"]
max_bad = 0.5
[tokenizer]
kind = "char"
[tokenize]
val_fraction = 0.2
min_chars = 3
"""


def unreachable(_: Artifact) -> NoReturn:
    raise AssertionError("nothing is trained")


def build(root: Path, recipe: Path, through: str = "tokenize") -> dict[str, str]:
    """Refresh a recipe and return the keys of all artifacts by kind and name."""
    no_training = TrainStage(check=lambda: None, identify=unreachable, run=unreachable)
    refresh.refresh(root, recipes.load(recipe), no_training, SilentProgress(), RefreshOptions(through=through))
    return {f"{path.parent.parent.name}/{path.parent.name}": path.name for path in artifact.generations(root)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the folder `mine` with a novel, a folder of posts and a table."""
    folder = tmp_path / "mine"
    (folder / "posts" / "old").mkdir(parents=True)
    for name, place in (("novel.txt", "江边"), ("posts/a.txt", "山中"), ("posts/old/b.txt", "城裏")):
        lines = (f"却說阿淵爲「硯」第{number}次來到{place}，見老漁翁（六旬）坐在船頭飲酒。" for number in range(60))
        (folder / name).write_text("\n\n".join(lines), encoding="utf-8")
    (folder / "variants.txt").write_text("爲 → 為\n", encoding="utf-8")
    return folder


def write_recipe(folder: Path, name: str, source: str, rest: str = CLEAN) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(f"[download]\nsource = {source}\n{rest}", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("mine", '["novel.txt", "posts"]'),
        ("mine", '["posts"]'),  # raw/mine/posts/a.txt: an entry of a list, although mine/posts/a.txt is a path too
        ("mine", '"."'),
        ("posts", '"posts"'),
        ("other", '"posts"'),
        ("book", '"novel.txt"'),
        ("demo", '["sample", "novel.txt"]'),
    ],
)
def test_recipe_of_tokens_gives_the_same_keys(tmp_path: Path, project: Path, name: str, source: str) -> None:
    first = build(tmp_path / "first", write_recipe(project, name, source))
    described = history.recipe_of(tmp_path / "first", history.find(tmp_path / "first", name))
    assert (described.name, described.notes) == (name, ())
    copied = tmp_path / "copied.toml"
    copied.write_text(recipe_file.render(name, described.sections, HEADER, explain=True), encoding="utf-8")
    assert build(tmp_path / "second", copied) == first
    assert recipes.load(copied).clean == recipes.load(project / f"{name}.toml").clean


def test_recipe_explains_its_keys_and_leaves_defaults_out(tmp_path: Path, project: Path) -> None:
    build(tmp_path / "store", write_recipe(project, "book", '"novel.txt"'), through="clean")
    described = history.recipe_of(tmp_path / "store", history.find(tmp_path / "store", "corpora/book"))
    assert set(described.sections) == {"download", "clean"}
    assert set(described.sections["clean"]) == {"unit", "quotes", "variants", "notes", "max_bad"}
    text = recipe_file.render("book", described.sections, HEADER, explain=True)
    lines = text.splitlines()
    assert lines[0] == "# The recipe of something."
    values = [index for index, line in enumerate(lines) if " = " in line and not line.startswith("#")][1:]
    assert all(lines[index - 1].startswith("# ") for index in values), text


def test_corpus_of_a_path_is_noted_and_its_recipe_runs(tmp_path: Path, project: Path) -> None:
    store = tmp_path / "store"
    gathered = inputs.gather_inputs(store, [str(project / "posts")], SilentProgress(), corpora=False)
    clean_stage.clean(store, "notes", gathered.files, CleanOptions(dedup="exact"), SilentProgress())
    described = history.recipe_of(store, history.find(store, "notes"))
    assert described.sections == {
        "download": {"source": str(project / "posts")},
        "clean": {"unit": "chapter", "dedup": "exact"},
    }
    assert len(described.notes) == 1
    assert "from the files themselves" in described.notes[0]


def test_changed_source_is_noted(tmp_path: Path, project: Path) -> None:
    build(tmp_path / "store", write_recipe(project, "other", '"posts"'))
    os.rename(project / "posts" / "a.txt", project / "posts" / "c.txt")
    described = history.recipe_of(tmp_path / "store", history.find(tmp_path / "store", "tokens/other"))
    assert described.sections["download"] == {"source": str(project / "posts")}
    assert "its source has other files now" in described.notes[0]


def test_ready_tokenizer_and_raw_files_are_named(tmp_path: Path, project: Path) -> None:
    store = tmp_path / "store"
    build(store, write_recipe(project, "trained", '"novel.txt"', CLEAN))
    path = write_recipe(
        project,
        "raw",
        '"posts"',
        '[tokenizer]\nuse = "trained"\n[tokenize]\nval_fraction = 0.5\nallow_unknown = true\n',
    )
    keys = build(store, path)
    described = history.recipe_of(store, history.find(store, "raw"))
    assert described.sections == {
        "download": {"source": str(project / "posts")},
        "tokenizer": {"use": "trained"},
        "tokenize": {"val_fraction": 0.5, "val_split": "stretch", "allow_unknown": True},
    }
    copied = tmp_path / "raw.toml"
    copied.write_text(recipe_file.render("raw", described.sections, HEADER), encoding="utf-8")
    assert build(store, copied) == keys


def test_unknown_artifact_and_mixed_cleaning_raise(tmp_path: Path, project: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(InputMissing, match="no artifact has this name"):
        history.find(store, "nothing")
    with pytest.raises(InputMissing, match="among the tokens"):
        history.find(store, "tokens/nothing")
    build(store, write_recipe(project, "mine", '["novel.txt", "posts"]'))
    tokens = artifact.find(store, "tokens", "mine")
    corpus = artifact.find(store, "corpora", "mine.posts")
    manifest = corpus.file("manifest.json")
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"corner"', '"curly"'), encoding="utf-8")
    with pytest.raises(BadConfig, match="were cleaned differently"):
        history.recipe_of(store, tokens)
