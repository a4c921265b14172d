"""`start` as a new user runs it: own texts of several kinds in an empty folder, and more text the next day."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import cli
from model.commands.start import next_commands
from model.runs.run import Result, read_result
from model.training import baselines
from model.training.baselines import Baselines
from pipeline.refresh import recipe as recipes
from pipeline.refresh.recipe import DownloadSection, Recipe, SampleSection, TrainSection
from pipeline.start import recipe_file
from pipeline.store import artifact
from tests.conftest import Inkstone

WORDS = (
    *("the", "of", "and", "to", "in", "river", "stone", "boat", "morning", "old", "man", "wrote", "past", "small"),
    *("book", "walked", "slowly", "under", "bright", "moon", "beside", "quiet", "hills"),
)
MINUTES = ("--minutes", "0.02")


def prose(seed: int, sentences: int = 200) -> str:
    """Return English paragraphs of invented sentences."""
    dice = random.Random(seed)
    lines = [" ".join(dice.choices(WORDS, k=dice.randint(4, 9))).capitalize() + "." for _ in range(sentences)]
    return "\n\n".join(" ".join(lines[start : start + 4]) for start in range(0, len(lines), 4))


def write_mixed_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.TXT").write_text(prose(1), encoding="utf-8")
    (folder / "notes.md").write_text(prose(2), encoding="utf-8")
    (folder / "山.txt").write_bytes(("　　却说阿渊携砚来到江边，见一老渔翁坐在船头饮酒。\n" * 80).encode("gb18030"))
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "body"), *((number, prose(number, 8)) for number in range(30))])
    records = [json.dumps({"id": number, "content": prose(100 + number, 8)}) for number in range(30)]
    (folder / "records.jsonl").write_text("\n".join(records), encoding="utf-8")
    (folder / "empty.txt").touch()
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    (folder / ".hidden.txt").write_text("hidden", encoding="utf-8")


def test_any_text_becomes_a_model_and_more_text_continues_it(tmp_path: Path, root: Path, inkstone: Inkstone) -> None:
    write_mixed_folder(tmp_path / "mixed")
    first = inkstone("start", "mixed", *MINUTES, cwd=tmp_path)
    assert first["result"] == "built"
    assert first["recipe"] == "mixed.toml"
    assert len(first["samples"]) == 3
    assert first["bits_per_char"] > 0
    assert Path(first["loss_curve"]).is_file()
    assert "left out 3 of 8 files: " in first["stderr"]
    tokenizer, tokens = artifact.find(root, "tokenizers", "mixed"), artifact.find(root, "tokens", "mixed")

    recipe = tmp_path / "mixed.toml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + "# my own remark\n", encoding="utf-8")
    (tmp_path / "more.txt").write_text(prose(3), encoding="utf-8")
    second = inkstone("start", "--name", "mixed", "more.txt", *MINUTES, cwd=tmp_path)
    built = {step["stage"] for step in second["stages"] if step["result"] == "built"}
    assert built == {"download", "clean more", "tokenize", "train"}
    assert artifact.find(root, "tokenizers", "mixed") == tokenizer
    grown = artifact.find(root, "tokens", "mixed")
    assert grown.manifest.options["split"] == tokens.manifest.options["split"]
    assert grown.manifest.counts["tokens"] > tokens.manifest.counts["tokens"]
    assert "parent" in {entry.role for entry in artifact.find(root, "runs", "mixed").manifest.inputs}
    assert recipe.read_text(encoding="utf-8").endswith("# my own remark\n")
    assert '"more.txt"' in recipe.read_text(encoding="utf-8")

    assert "from the last run" in inkstone("start", "--name", "mixed", "--plan", cwd=tmp_path)["plan"][-1]
    again = inkstone("start", "--name", "mixed", cwd=tmp_path)
    assert again["result"] == "unchanged"
    assert inkstone("refresh", "mixed.toml", cwd=tmp_path)["result"] == "unchanged"

    inkstone("recipe", "mixed", "--out", "copied.toml", cwd=tmp_path)
    assert inkstone("refresh", "copied.toml", cwd=tmp_path)["result"] == "unchanged"

    before = artifact.find(root, "runs", "mixed")
    longer = inkstone("start", "--name", "mixed", "--minutes", "0.03", cwd=tmp_path)
    assert [step["stage"] for step in longer["stages"] if step["result"] == "built"] == ["train"]
    assert before.as_input("parent") in artifact.find(root, "runs", "mixed").manifest.inputs
    assert inkstone("refresh", "mixed.toml", cwd=tmp_path)["result"] == "unchanged"


def test_end_has_a_verdict_and_the_next_commands_and_counts_simple_models_once(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[object] = []

    def count(*arguments: Any) -> Baselines:
        calls.append(arguments)
        return compute_baselines(*arguments)

    compute_baselines = baselines.compute_baselines
    monkeypatch.setattr(baselines, "compute_baselines", count)
    monkeypatch.chdir(tmp_path)
    Path("novel.txt").write_text(prose(1), encoding="utf-8")
    assert cli.main(["--artifacts", str(root), "start", "novel.txt", *MINUTES]) == 0
    output = capsys.readouterr()
    assert len(calls) == 1
    result = read_result(artifact.find(root, "runs", "novel").path)
    scores = result.baselines
    assert f"baselines bits per character, lower is better: random guesses {scores['uniform']:.2f}, " in output.out
    assert re.search(
        r"^verdict   \d\.\d\d bits per character, (better than|about as good as|worse than) ", output.out, re.M
    )
    commands = next_commands("novel", recipes.load("novel.toml"), result)
    assert [f"inkstone {command}" in output.out for command in commands] == [True] * len(commands)
    prompt = read_prompt(root)
    assert prompt
    assert f"{prompt}|" in output.err


@pytest.mark.parametrize(("epochs", "longer"), [(7.9, ["start --name novel --minutes 17  (train longer)"]), (8.0, [])])
def test_next_commands_suggest_more_minutes_only_while_they_help(epochs: float, longer: list[str]) -> None:
    recipe = Recipe("novel", DownloadSection("a.txt"), train=TrainSection(), sample=SampleSection(("It is",)))
    result = Result(10, 100, 1000, "last", "best", seconds=1000, epochs=epochs)
    assert next_commands("novel", recipe, result) == (
        "sample novel 'It is'",
        "serve novel",
        *longer,
        "start --name novel more.txt",
    )


@pytest.mark.parametrize("parent", ["", "novel"])
def test_next_commands_are_valid(parent: str) -> None:
    section = TrainSection(parent=parent)
    recipe = Recipe("talks", DownloadSection("a.txt"), train=section, sample=SampleSection(("It is",)))
    for text in next_commands("talks", recipe, Result(10, 100, 1000, "last", "best")):
        name, *arguments = shlex.split(text.partition("  (")[0])
        cli.cli.commands[name].make_context(name, arguments)


def test_next_commands_prefer_a_prompt_without_an_apostrophe() -> None:
    recipe = Recipe("novel", DownloadSection("a.txt"), train=TrainSection(), sample=SampleSection(("It's he", "So it")))
    assert next_commands("novel", recipe, Result(10, 100, 1000, "last", "best"))[0] == "sample novel 'So it'"


def read_prompt(root: Path) -> str:
    """Return the prompt of the samples during the training, which must be the first of the recipe."""
    (prompt,) = {
        json.loads(line)["prompt"]
        for line in artifact.find(root, "runs", "novel").file("samples.jsonl").read_text(encoding="utf-8").splitlines()
    }
    assert prompt == recipes.load("novel.toml").sample.prompts[0]
    return str(prompt)


def test_plan_gives_reasons_and_writes_nothing(tmp_path: Path, root: Path, inkstone: Inkstone) -> None:
    (tmp_path / "novel.txt").write_text(prose(1), encoding="utf-8")
    plan = "\n".join(inkstone("start", "novel.txt", "--plan", cwd=tmp_path)["plan"])
    for heading in ("text", "cleaning", "held out", "tokens", "model", "training", "recipe"):
        assert f"\n{heading} " in f"\n{plan}"
    assert "English" in plan
    assert "exports to transformers and GGUF" in plan
    assert not root.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["novel.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name = 'novel'\n", "novel.toml was not written by `start`, so it is not changed"),
        ("# Written by `inkstone start`\nname = \n", "novel.toml: not TOML"),
    ],
)
def test_recipe_of_somebody_else_is_never_overwritten(
    tmp_path: Path, inkstone: Inkstone, content: str, message: str
) -> None:
    (tmp_path / "novel.txt").write_text(prose(1), encoding="utf-8")
    (tmp_path / "novel.toml").write_text(content, encoding="utf-8")
    assert message in inkstone("start", "novel.txt", cwd=tmp_path, code=78)["error"]
    assert (tmp_path / "novel.toml").read_text(encoding="utf-8") == content


def test_errors_name_a_command_that_works(tmp_path: Path, inkstone: Inkstone) -> None:
    assert "inkstone start novel.txt" in inkstone("start", cwd=tmp_path, code=78)["hint"]
    assert "absent.txt" in inkstone("start", "absent.txt", cwd=tmp_path, code=66)["error"]
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7 " + bytes(100))
    assert "a PDF" in inkstone("start", "paper.pdf", cwd=tmp_path, code=65)["error"]
    assert "no such recipe" in inkstone("start", "--name", "mine", cwd=tmp_path, code=66)["error"]
    (tmp_path / "haiku.txt").write_text("An old silent pond\nA frog.\n", encoding="utf-8")
    refused = inkstone("start", "haiku.txt", "--plan", cwd=tmp_path, code=65)
    assert "haiku.txt: 27 characters: too short" in refused["error"]
    assert "val-fraction" not in refused["hint"]
    (tmp_path / "novel.txt").write_text(prose(1), encoding="utf-8")
    assert "--minutes" in inkstone("start", "novel.txt", "--minutes", "0", cwd=tmp_path, code=78)["error"]
    assert not (tmp_path / "novel.toml").exists()


def test_options_of_the_input_reach_the_recipe(tmp_path: Path, inkstone: Inkstone) -> None:
    (tmp_path / "posts").mkdir()
    records = [json.dumps({"ask": prose(number, 2), "reply": prose(100 + number, 2)}) for number in range(60)]
    (tmp_path / "posts" / "a.jsonl").write_text("\n".join([*records, '{"ask": "cut']), encoding="utf-8")
    (tmp_path / "posts" / "b.txt").write_bytes(("Le garçon était là, près de la forêt.\n\n" * 60).encode("cp1252"))
    (tmp_path / "posts" / "c.log").write_text("no text", encoding="utf-8")
    arguments = ("--text-field", "ask,reply", "--encoding", "cp1252", "--exclude", "*.log")
    planned = inkstone("start", "posts", *arguments, "--plan", cwd=tmp_path)
    assert "1 of 61 documents rejected: bad-json" in planned["plan"][0]
    assert "in cp1252" in planned["plan"][0]

    refused = inkstone("start", "posts", *arguments, *MINUTES, cwd=tmp_path, code=11)
    assert "--max-bad 0.017" in refused["hint"]
    accepted = inkstone("start", "posts", "--max-bad", "0.017", *MINUTES, cwd=tmp_path)
    assert accepted["result"] == "built"
    recipe = (tmp_path / "posts.toml").read_text(encoding="utf-8")
    for line in ('text_fields = ["ask,reply"]', 'encoding = "cp1252"', 'exclude = ["*.log"]', "max_bad = 0.017"):
        assert line in recipe


def test_name_that_is_taken_gets_a_number_and_a_line_says_why(tmp_path: Path, inkstone: Inkstone) -> None:
    (tmp_path / "novel.txt").write_text(prose(1), encoding="utf-8")
    assert "is taken" not in inkstone("start", "novel.txt", "--plan", cwd=tmp_path)["stderr"]
    inkstone("clean", "novel.txt", cwd=tmp_path)
    second = inkstone("start", "novel.txt", "--plan", cwd=tmp_path)
    assert second["plan"][-1].endswith("novel-2.toml")
    assert "the name novel is taken by corpora/novel: this is novel-2" in second["stderr"]


def test_plan_of_a_recipe_says_if_there_is_no_earlier_run(tmp_path: Path, inkstone: Inkstone) -> None:
    (tmp_path / "novel.txt").write_text(prose(1), encoding="utf-8")
    recipe_file.write(tmp_path / "novel.toml", {"download": {"source": ["novel.txt"]}, "train": {"minutes": 1.0}})
    planned = inkstone("start", "novel.txt", "--plan", cwd=tmp_path)["plan"]
    assert planned[-1] == "training  1 minute, there is no earlier run"


def test_text_that_comes_before_there_is_a_model_trains_a_new_tokenizer(
    tmp_path: Path, root: Path, inkstone: Inkstone
) -> None:
    (tmp_path / "a.txt").write_text(prose(1), encoding="utf-8")
    (tmp_path / "b.txt").write_text("".join(map(chr, range(0xC0, 0x240))) * 9, encoding="utf-8")
    inkstone("start", "a.txt", *MINUTES, cwd=tmp_path)
    run, first = artifact.find(root, "runs", "a"), artifact.find(root, "tokenizers", "a")
    shutil.rmtree(run.path.parent)  # as if the first training had failed
    plan = inkstone("start", "b.txt", "--name", "a", "--plan", cwd=tmp_path)["plan"]
    assert "there is no model yet, so new text trains a new tokenizer; its split is kept" in plan[0]
    inkstone("start", "b.txt", "--name", "a", *MINUTES, cwd=tmp_path)
    assert artifact.find(root, "tokenizers", "a").manifest.key != first.manifest.key
    plan = inkstone("start", "b.txt", "--name", "a", "--plan", cwd=tmp_path)["plan"]
    assert "its tokenizer and its split are kept" in plan[0]


def test_folder_of_code_proposes_include_although_a_note_in_it_is_read(tmp_path: Path, inkstone: Inkstone) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "notes.txt").write_text("to do: more\n", encoding="utf-8")
    (tmp_path / "code" / "boat.py").write_text("boat = 'old'\n" * 99, encoding="utf-8")
    assert '--include "*.py"' in inkstone("start", "code", cwd=tmp_path, code=65)["stderr"]


def test_second_text_of_the_same_name_says_that_it_adds_to_the_model(tmp_path: Path, inkstone: Inkstone) -> None:
    for number, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "novel.txt").write_text(prose(number), encoding="utf-8")
    recipe_file.write(tmp_path / "novel.toml", {"download": {"source": ["a/novel.txt"]}})
    line = "adds to the model novel; for a new one: --name other"
    for arguments, is_said in ((("a/novel.txt",), False), (("b/novel.txt",), True), (("b", "--name", "novel"), False)):
        plan = inkstone("start", *arguments, "--plan", cwd=tmp_path)["plan"]
        assert any(line in text for text in plan) == is_said


def test_source_that_cannot_be_read_does_not_reach_the_recipe(tmp_path: Path, inkstone: Inkstone) -> None:
    (tmp_path / "novel.txt").write_text(prose(1), encoding="utf-8")
    assert "empty string" in inkstone("start", "", cwd=tmp_path, code=78)["error"]
    assert "got inf" in inkstone("start", "novel.txt", "--minutes", "inf", cwd=tmp_path, code=78)["error"]
    inkstone("start", "novel.txt", *MINUTES, cwd=tmp_path)
    before = (tmp_path / "novel.toml").read_bytes()
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7 " + bytes(100))
    inkstone("start", "--name", "novel", "absent.txt", cwd=tmp_path, code=66)
    inkstone("start", "--name", "novel", "paper.pdf", cwd=tmp_path, code=65)
    assert (tmp_path / "novel.toml").read_bytes() == before
    (tmp_path / "novel.txt").rename(tmp_path / "moved.txt")
    missing = inkstone("start", "--name", "novel", cwd=tmp_path, code=10)
    assert "novel.txt vanished; the old copy is kept" in missing["error"]
