"""Tunings of a recipe by `refresh`, and of a run by `start --from`: what is built, what is fresh, what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cli
from model.commands.refresh import check_training
from pipeline.errors import BadConfig
from pipeline.refresh import recipe as recipes
from pipeline.refresh import tuning
from pipeline.store import artifact
from pipeline.tokens.store import open_store

ROOT = Path(__file__).resolve().parents[3]
RECIPE = """
[download]
source = "novel.txt"
[tokenizer]
kind = "bbpe"
vocab_size = 500
[train]
preset = "mini"
steps = 20
set = {vocab_size = 0, evaluations = 1, eval_bytes = 2000, block_size = 128, batch_size = 4}
[sft]
source = "talks.jsonl"
steps = 6
set = {evaluations = 1}
[dpo]
source = "pairs.jsonl"
steps = 4
prompts = ["1+1?", "阿渊是谁？"]
set = {evaluations = 1}
[sample]
max_tokens = 5
"""
Run = Callable[..., dict[str, Any]]


def write_inputs(folder: Path) -> None:
    novel = (ROOT / "pipeline" / "sample" / "yanshan.txt").read_text(encoding="utf-8")
    (folder / "novel.txt").write_text(novel[:12_000], encoding="utf-8")
    user = [{"role": "user", "content": "阿渊是谁？"}]
    talks = [{"messages": [*user, {"role": "assistant", "content": f"第{number}个人。"}]} for number in range(40)]
    answers = [{"prompt": f"阿渊{number}", "chosen": "人。", "rejected": "人人人。"} for number in range(40)]
    for name, records in (("talks", talks), ("pairs", answers)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records), encoding="utf-8")
    (folder / "book.toml").write_text(RECIPE, encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a refreshed recipe that has tunings, and the object that the refresh printed."""
    folder = tmp_path_factory.mktemp("tunings")
    write_inputs(folder)
    return folder


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(folder)

    def command(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main(["--artifacts", "artifacts", "--json", *words, "--device", "cpu"]) == 0
        printed: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return printed

    return command


def results(printed: dict[str, Any]) -> dict[str, str]:
    return {step["stage"]: step["result"] for step in printed["stages"]}


def test_a_refresh_builds_the_run_and_then_its_tunings_once(run: Run, folder: Path) -> None:
    planned = results(run("refresh", "book.toml", "--dry-run"))
    assert [stage for stage in planned if stage.startswith(("sft", "dpo"))] == ["sft", "dpo"]
    assert set(planned.values()) == {"stale"}

    built = run("refresh", "book.toml")
    assert list(results(built))[-8:] == [
        *(f"sft {stage}" for stage in ("download", "clean", "tokenize", "train")),
        *(f"dpo {stage}" for stage in ("download", "clean", "tokenize", "train")),
    ]
    assert set(results(built).values()) == {"built"}
    assert built["artifact"].startswith("runs/book-dpo/")
    assert [sample["prompt"] for sample in built["samples"]] == ["1+1?", "阿渊是谁？"]

    root = folder / "artifacts"
    chain = {name: artifact.find(root, "runs", name) for name in ("book", "book-sft", "book-dpo")}
    for name, parent in (("book-sft", "book"), ("book-dpo", "book-sft")):
        assert chain[parent].ref in {entry.name for entry in chain[name].manifest.inputs if entry.role == "parent"}
    assert open_store(artifact.find(root, "tokens", "book-sft")).chat == "chat"
    assert open_store(artifact.find(root, "tokens", "book-dpo")).chat == "preferences"

    assert set(results(run("refresh", "book.toml")).values()) == {"unchanged"}
    assert set(results(run("refresh", "book.toml", "--dry-run")).values()) == {"fresh"}


def test_more_pairs_tune_the_same_run_again(run: Run, folder: Path) -> None:
    with (folder / "pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "阿渊", "chosen": "人。", "rejected": "人人。"}) + "\n")
    planned = run("refresh", "book.toml", "--dry-run")
    stale = [stage for stage, result in results(planned).items() if result == "stale"]
    assert stale == ["dpo download", "dpo clean", "dpo tokenize", "dpo train"]
    built = run("refresh", "book.toml")
    assert [stage for stage, result in results(built).items() if result == "built"] == stale


def test_another_base_run_tunes_all_again_and_through_sft_stops_there(run: Run, folder: Path) -> None:
    built = run("refresh", "book.toml", "--set", "train.steps=21", "--through", "sft")
    assert [stage for stage, result in results(built).items() if result == "built"] == ["train", "sft train"]
    assert not any(stage.startswith("dpo") for stage in results(built))
    (step,) = [step for step in built["stages"] if step["stage"] == "sft train"]
    assert step["why"] == "starts from runs/book"


def test_no_recipe_is_made_of_a_tuned_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--artifacts", "artifacts", "recipe", "runs/book-sft"]) == BadConfig.exit_code
    assert "was tuned from runs/book" in capsys.readouterr().err


def test_start_from_a_run_writes_a_recipe_that_tunes_it_and_prints_three_conversations(run: Run, folder: Path) -> None:
    planned = run("start", "talks.jsonl", "--from", "book", "--plan")
    assert "40 conversations" in planned["plan"][0]
    assert not (folder / "talks.toml").exists()
    built = run("start", "talks.jsonl", "--from", "book", "--minutes", "0.02")
    assert built["artifact"].startswith("runs/talks/")
    assert [sample["prompt"] for sample in built["samples"]] == ["阿渊是谁？"]
    loaded = recipes.load(folder / "talks.toml", (), check_training)
    assert (loaded.train.parent, loaded.tokenizer.use, loaded.train.minutes) == ("book", "book", 0.02)
    assert loaded.clean is not None
    assert loaded.clean.profile == "chat"
    assert results(run("start", "--name", "talks", "--from", "book"))["train"] == "unchanged"


def test_start_from_a_run_refuses_plain_text_and_another_parent(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--artifacts", "artifacts", "start"]
    assert cli.main([*words, "novel.txt", "--from", "book"]) != 0
    assert "novel.txt: no conversations" in capsys.readouterr().err
    assert cli.main([*words, "--name", "talks", "--from", "book-sft"]) == BadConfig.exit_code
    assert "talks.toml tunes book" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sft.set.lerning_rate=1", "sft.set.lerning_rate"),
        ("sft.set.replay=2", "sft.set.replay"),
        ("dpo.minutes=-1", "dpo.minutes"),
        ("dpo.sorce=1", "dpo.sorce: unknown key"),
        ("train.parent=book", "preset is given"),
    ],
)
def test_errors_of_a_tuning_name_its_section(folder: Path, line: str, message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        recipes.load(folder / "book.toml", (line,), check_training)


def test_a_recipe_without_tunings_is_one_chain(folder: Path) -> None:
    recipe = recipes.load(folder / "book.toml")
    assert [part.name for part in tuning.with_tunings(recipe)] == ["book", "book-sft", "book-dpo"]
    assert [part.name for part in tuning.with_tunings(recipe, "train")] == ["book"]
    assert [part.train.parent for part in tuning.with_tunings(recipe)] == ["", "book", "book-sft"]
    assert len(tuning.with_tunings(recipes.load("sample"))) == 1
