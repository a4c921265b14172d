"""Reports of runs: numbers equal an independent count, the command trains the run again, torch is not needed."""

from __future__ import annotations

import csv
import json
import math
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from safetensors.numpy import load_file

import cli
from model.config import GPTConfig
from pipeline.errors import BadData
from pipeline.report import charts, reports, run, run_sections, runs
from pipeline.report.charts import Scale, Series
from pipeline.report.languages import Language
from pipeline.report.run import RunNumbers
from pipeline.report.section import Chapter, Figure, Note, Passage, Pre, Table
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Tokenizer, loading
from tests.pipeline.report.conftest import read
from tests.pipeline.report.conftest import run as command
from tests.pipeline.report.test_page import Elements
from tests.support.browser import low_contrast, open_browser, requested_urls, show
from tests.support.exchanging import publish_run
from tests.support.tuning import BASE, pairs, publish_tokens, sums, tune
from tests.test_house import loaded_after

ENGLISH = Language("en")
T = TypeVar("T")
SIZE = [
    word for pair in ("width=16", "layers=1", "heads=2", "block_size=32", "batch_size=4") for word in ("--set", pair)
]


@pytest.fixture(scope="module")
def trained(store: Path) -> Path:
    """Return the store with the runs `novel`, `longer` (on the same tokens) and `hostile`."""
    for name, tokens, steps in (("novel", "novel", 12), ("longer", "novel", 16), ("hostile", "hostile", 3)):
        words = ("--tokens", tokens, "--preset", "sample", "--name", name, "--steps", steps, "--device", "cpu")
        command(store, "train", *words, *SIZE, "--set", "eval_bytes=6000", "--set", f"dropout={steps / 100}")
    return store


@pytest.fixture
def novel(trained: Path) -> Artifact:
    return read(trained, "runs", "novel")


def blocks_of(chapter: Chapter, kind: type[T]) -> Iterator[T]:
    return (block for section in chapter.sections for block in section.blocks if isinstance(block, kind))


def copy_without(run_artifact: Artifact, folder: Path, *names: str) -> Artifact:
    shutil.copytree(run_artifact.path, folder)
    for name in names:
        (folder / name).unlink()
    return artifact.read(folder)


def test_rows_result_and_samples_are_those_of_the_files(novel: Artifact) -> None:
    numbers = run.collect(novel)
    with open(novel.file("metrics.csv"), newline="") as file:
        expected = [{name: float(text) if text else None for name, text in row.items()} for row in csv.DictReader(file)]
    assert list(numbers.rows) == expected
    assert numbers.result == json.loads(novel.file("result.json").read_text())
    lines = novel.file("samples.jsonl").read_text().splitlines()
    assert [(sample.step, sample.text) for sample in numbers.samples] == [
        (record["step"], record["text"]) for record in map(json.loads, lines)
    ]
    steps, speeds = numbers.speeds()
    total = sum((row["seconds"] or 0.0) for row in expected[-1:])
    assert steps[-1] == 12
    assert sum(speeds) > 0
    assert total == pytest.approx(numbers.result["seconds"], abs=0.01)


def test_token_losses_add_up_to_the_loss_of_the_result(novel: Artifact) -> None:
    losses, result = run.collect(novel).losses, json.loads(novel.file("result.json").read_text())
    assert losses
    assert losses.step == result["steps"] == 12
    assert losses.mean * math.log(2) == pytest.approx(result["val_loss"], abs=1e-5)
    characters = sum(cost.count for cost in losses.characters)
    spent = sum(cost.bits for cost in losses.characters) + losses.ends[0]
    assert spent == pytest.approx(losses.mean * losses.tokens)
    assert spent / characters == pytest.approx(result["bits_per_char"], rel=1e-4)


def slow_costs(ids: list[int], bits: list[float], tokenizer: Tokenizer) -> dict[str, tuple[int, float]]:
    """Return count and bits of each character, from the bytes of the text one by one."""
    shares = [
        (byte, cost / len(part))
        for token, cost in zip(ids, bits, strict=True)
        if (part := tokenizer.token_bytes(token, token))
        for byte in part
    ]
    costs: dict[str, tuple[int, float]] = {}
    pending, cost = b"", 0.0
    for byte, share in shares:
        pending, cost = pending + bytes([byte]), cost + share
        try:
            character = pending.decode()
        except UnicodeDecodeError:
            continue
        count, total = costs.get(character, (0, 0.0))
        costs[character] = (count + 1, total + cost)
        pending, cost = b"", 0.0
    return costs


def test_costs_of_characters_equal_a_slow_count(novel: Artifact) -> None:
    losses, tokenizer = run.collect(novel).losses, loading.open_folder(novel.path)
    tensors = load_file(novel.file("losses.safetensors"))
    expected = slow_costs(tensors["ids"].tolist(), (tensors["losses"] / math.log(2)).tolist(), tokenizer)
    assert losses
    assert {cost.character: cost.count for cost in losses.characters} == {
        key: count for key, (count, _) in expected.items()
    }
    for cost in losses.characters:
        assert cost.bits == pytest.approx(expected[cost.character][1], rel=1e-5)
    sums = [cost.bits for cost in losses.characters]
    assert sums == sorted(sums, reverse=True)


def test_passages_are_stretches_of_the_validation_text_with_their_losses(novel: Artifact) -> None:
    losses, tokenizer = run.collect(novel).losses, loading.open_folder(novel.path)
    tensors = load_file(novel.file("losses.safetensors"))
    assert losses
    assert losses.best
    assert len({passage.start for passage in (*losses.best, *losses.worst)}) == len(losses.best) + len(losses.worst)
    for passage in (*losses.best, *losses.worst):
        assert len(passage.tokens) <= run.PASSAGE
        stretch = slice(passage.start, passage.start + sum(token.ids for token in passage.tokens))
        assert "".join(token.text for token in passage.tokens) == tokenizer.decode(tensors["ids"][stretch].tolist())
        assert passage.bits == pytest.approx(float(tensors["losses"][stretch].sum()) / math.log(2), rel=1e-5)
    worst, best = losses.worst[0].bits_per_byte, losses.best[0].bits_per_byte
    assert best == min(passage.bits_per_byte for passage in (*losses.best, *losses.worst))
    assert worst == max(passage.bits_per_byte for passage in (*losses.best, *losses.worst))


def test_parts_of_a_character_are_shown_as_one(novel: Artifact) -> None:
    tokenizer = loading.open_folder(novel.path)
    ids = np.array(tokenizer.encode("鑿𠮷a"))
    tokens = run.scored(ids, np.ones(len(ids)), tokenizer)
    assert "".join(token.text for token in tokens) == "鑿𠮷a"
    assert sum(token.bits for token in tokens) == len(ids) > len(tokens)


def test_ranges_of_positions_cover_each_position_once() -> None:
    positions = [float(number) for number in range(1, 101)]
    ranges = run.by_position([*positions, math.nan], 12)
    assert [number for low, high, _ in ranges for number in range(low, high + 1)] == [*range(1, 102)]
    assert all(mean == pytest.approx((low + min(high, 100)) / 2) for low, high, mean in ranges)
    assert len(ranges) <= 12


def test_chapter_shows_the_numbers_of_the_files(novel: Artifact) -> None:
    chapter, result = run_sections.chapter(novel, ENGLISH), json.loads(novel.file("result.json").read_text())
    assert dict(chapter.facts)["steps"] == 12
    assert dict(chapter.facts)["bits per character"] == round(result["best_bits_per_char"], 3)
    curve = next(blocks_of(chapter, Figure)).table
    assert curve
    with open(novel.file("metrics.csv"), newline="") as file:
        losses = {int(row["step"]): float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]}
    column = list(curve.columns).index("validation")
    assert {row[0]: row[column] for row in curve.rows if row[column] is not None} == losses
    (baselines,) = (table for table in blocks_of(chapter, Table) if table.columns[0] == "model")
    assert {str(name): bits for name, bits in baselines.rows if name != "this run"} == {
        {"ngram": "counting n-grams"}.get(name, name): bits for name, bits in result["baselines"].items()
    }
    assert [bits for _, bits in baselines.rows] == sorted((bits for _, bits in baselines.rows), reverse=True)  # type: ignore[type-var]


def test_tints_follow_the_losses(novel: Artifact) -> None:
    passages = list(blocks_of(run_sections.chapter(novel, ENGLISH), Passage))
    assert passages
    for passage in passages:
        bits = [float(span.title.split()[0]) for span in passage.spans]
        tints = [int(span.tint[1:]) for span in passage.spans]
        assert all(
            first <= second
            for (_, first), (_, second) in zip(
                sorted(zip(bits, tints, strict=True)), sorted(zip(bits, tints, strict=True))[1:], strict=False
            )
        )
        assert passage.table
        assert [row[1] for row in passage.table.rows] == pytest.approx(bits, abs=0.006)


def test_command_of_the_report_trains_the_same_run(
    trained: Path, novel: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    (command_line,) = blocks_of(run_sections.chapter(novel, ENGLISH), Pre)
    words = shlex.split(command_line.text.replace("\\\n", " "))
    assert words[:2] == ["inkstone", "train"]
    assert cli.main(["--artifacts", str(trained), "--json", *words[1:]]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["result"], output["artifact"]) == ("unchanged", novel.ref)


def test_command_of_the_report_names_the_prompt_that_was_given(trained: Path, novel: Artifact, tmp_path: Path) -> None:
    assert "--prompt" not in next(blocks_of(run_sections.chapter(novel, ENGLISH), Pre)).text
    prompt = '却说 "it\'s"'
    words = ("--tokens", "novel", "--preset", "sample", "--name", "prompted", "--steps", 1, "--device", "cpu")
    command(trained, "train", *words, *SIZE, "--prompt", prompt)
    chapter = run_sections.chapter(read(trained, "runs", "prompted"), ENGLISH)
    words_of_report = shlex.split(next(blocks_of(chapter, Pre)).text.replace("\\\n", " "))
    assert words_of_report[words_of_report.index("--prompt") + 1] == prompt


@pytest.mark.parametrize("kind", ["chat", "preferences"])
def test_report_of_a_tuned_run_has_both_scores_and_the_command_that_tunes_again(
    root: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = publish_run(root, GPTConfig(vocab_size=BASE.vocab_size, block_size=96, layers=1, heads=2, width=8), BASE)
    conversations = sums(9) if kind == "chat" else pairs(9)
    tuned = tune(root, publish_tokens(root, kind, conversations, conversations), parent)
    chapter = run_sections.chapter(tuned, ENGLISH)
    (table,) = (table for table in blocks_of(chapter, Table) if table.columns[1:] == ("before", "after"))
    tuning = run.collect(tuned).result["tuning"]
    assert {row[1:] for row in table.rows} == {
        (value, tuning[name.replace("before", "after")]) for name, value in tuning.items() if name.endswith("_before")
    }
    notes = [note.text for note in blocks_of(chapter, Note)]
    assert not [note for note in notes if "earlier version" in note or "no validation text" in note]
    (command_line,) = blocks_of(chapter, Pre)
    words = shlex.split(command_line.text.replace("\\\n", " "))
    capsys.readouterr()
    assert cli.main(["--artifacts", str(root), "--json", *words[1:], "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["result"] == "unchanged"


def test_command_of_a_continued_run_names_its_parent(trained: Path, novel: Artifact) -> None:
    command(trained, "train", "--continue", novel.ref, "--tokens", "novel", "--steps", 2, "--device", "cpu")
    continued = read(trained, "runs", "novel")
    (command_line,) = blocks_of(run_sections.chapter(continued, ENGLISH), Pre)
    words = shlex.split(command_line.text.replace("\\\n", " "))
    assert words[words.index("--continue") + 1] == novel.ref.removeprefix("runs/")
    assert cli.main(["--artifacts", str(trained), *words[1:]]) == 0
    assert read(trained, "runs", "novel").ref == continued.ref
    command(trained, "rollback", "runs/novel", "--to", novel.manifest.key)


def test_few_characters_of_validation_text_are_not_compared(novel: Artifact) -> None:
    numbers = run.collect(novel)
    assert run_sections.verdict(replace(numbers, result={**numbers.result, "val_characters": 10}), ENGLISH).endswith(
        " bits per character of text that was not trained on: these are only 10 characters, too few to compare by."
    )
    assert numbers.result["val_characters"] > 10


def test_run_without_token_losses_says_why_they_are_missing(novel: Artifact, tmp_path: Path) -> None:
    older = copy_without(novel, tmp_path / "older", "losses.safetensors")
    chapter = run_sections.chapter(older, ENGLISH)
    assert [note.text for note in blocks_of(chapter, Note) if "losses.safetensors" in note.text]
    assert not list(blocks_of(chapter, Passage))


def test_imported_run_has_a_chapter_without_curves(novel: Artifact, tmp_path: Path) -> None:
    names = ("losses.safetensors", "metrics.csv", "samples.jsonl", "log.jsonl")
    imported = copy_without(novel, tmp_path / "imported", *names)
    result = {"steps": 0, "tokens": 0, "parameters": 5, "last": "step-00000000", "best": "step-00000000"}
    (imported.path / "result.json").write_text(json.dumps(result))
    chapter = run_sections.chapter(imported, ENGLISH)
    assert chapter.summary == ""
    assert next(blocks_of(chapter, Note)).text.startswith("This run was imported")
    assert not [table.caption for table in blocks_of(chapter, Table) if "training" in table.caption]
    assert not list(blocks_of(chapter, Figure))
    assert [name for name, _ in chapter.facts] == ["bits per character", "parameters"]
    (results,) = (
        table
        for table in blocks_of(runs.chapter([run.collect(imported), run.collect(novel)], ENGLISH), Table)
        if "steps" in table.columns
    )
    assert results.rows[0][3:] == (None, None, None)
    assert None not in results.rows[1]


def as_run(novel: Artifact, folder: Path, without: tuple[str, ...], **fields: object) -> Chapter:
    """Return the chapter of a copy of a run with other fields in its result."""
    copy = copy_without(novel, folder, *without)
    result = json.loads((copy.path / "result.json").read_text()) | fields
    (copy.path / "result.json").write_text(json.dumps(result))
    return run_sections.chapter(copy, ENGLISH)


@pytest.mark.parametrize("task", ["sft", "dpo"])
def test_run_tuned_on_answers_has_a_command_without_a_preset(novel: Artifact, tmp_path: Path, task: str) -> None:
    tuned = as_run(novel, tmp_path / "tuned", ("losses.safetensors",), task=task)
    (command_of_run,) = blocks_of(tuned, Pre)
    assert "--name" in command_of_run.text
    assert "--preset" not in command_of_run.text  # which `train` refuses for a tuning
    assert not [note.text for note in blocks_of(tuned, Note) if "earlier version" in note.text]


def test_validation_without_bits_per_character_is_not_called_missing(novel: Artifact, tmp_path: Path) -> None:
    pairs = copy_without(novel, tmp_path / "pairs", "losses.safetensors")
    rows = list(csv.DictReader(pairs.file("metrics.csv").read_text().splitlines()))
    with open(pairs.file("metrics.csv"), "w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0]])
        table.writeheader()
        table.writerows({**row, "bits_per_char": "", "bits_per_byte": ""} for row in rows)
    result = json.loads(pairs.file("result.json").read_text())
    scores: dict[str, object] = {"task": "dpo", "bits_per_char": None, "best_bits_per_char": None, "baselines": {}}
    pairs.file("result.json").write_text(json.dumps(result | scores))
    chapter = run_sections.chapter(pairs, ENGLISH)
    assert not [note.text for note in blocks_of(chapter, Note) if "no validation text" in note.text]
    (samples,) = (section for section in chapter.sections if section.title == "Samples")
    assert "bits per character" not in str(samples.blocks[0])


def test_run_mixed_with_ngrams_says_what_its_losses_are_of(novel: Artifact, tmp_path: Path) -> None:
    mixed = copy_without(novel, tmp_path / "mixed")
    config = json.loads(mixed.file("config.json").read_text())
    assert "network alone" not in str(run_sections.chapter(mixed, ENGLISH).sections[0].blocks)
    config["model"]["ngram"] = 4
    mixed.file("config.json").write_text(json.dumps(config))
    assert "network alone" in str(run_sections.chapter(mixed, ENGLISH).sections[0].blocks)


@pytest.mark.parametrize(("plans", "line"), [(2, "resumed 1 time."), (3, "resumed 2 times.")])
def test_incidents_are_counted_in_plain_english(novel: Artifact, tmp_path: Path, plans: int, line: str) -> None:
    resumed = copy_without(novel, tmp_path / "resumed")
    (event,) = (text for text in resumed.file("log.jsonl").read_text().splitlines() if '"plan"' in text)
    resumed.file("log.jsonl").write_text(f"{event}\n" * plans)
    notes = [note.text for note in blocks_of(run_sections.chapter(resumed, ENGLISH), Note)]
    assert f"It was interrupted and {line}" in notes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "step\nfirst\n"),
        ("losses.safetensors", "x"),
        ("result.json", "[]"),
        ("samples.jsonl", "{\n{}\n"),
    ],
)
def test_damaged_file_is_named(novel: Artifact, tmp_path: Path, name: str, content: str) -> None:
    damaged = copy_without(novel, tmp_path / "damaged")
    damaged.file(name).write_text(content)
    with pytest.raises(BadData, match=name):
        run_sections.chapter(damaged, ENGLISH)


def test_comparison_lists_exactly_what_differs(trained: Path) -> None:
    compared = [run.collect(read(trained, "runs", name)) for name in ("novel", "longer", "hostile")]
    chapter = runs.chapter(compared, ENGLISH)
    tables = {table.columns[0]: table for table in blocks_of(chapter, Table)}
    assert {row[0] for row in tables["setting"].rows} == {"steps", "dropout", "tokens"}
    assert [row[0] for row in tables["run"].rows] == ["novel", "longer", "hostile"]
    assert [note.text for note in blocks_of(chapter, Note) if "different tokens" in note.text]
    same = runs.chapter(compared[:1] * 2, ENGLISH)
    assert "Configuration and data are the same." in same.sections[-1].blocks
    assert len(set(runs.labels(compared[:1] * 2))) == 1


def curve_of(numbers: RunNumbers) -> list[float]:
    return [value for row in numbers.rows if (value := row["bits_per_char"]) is not None]


def test_curves_of_several_runs_have_all_points_in_their_tables(trained: Path) -> None:
    compared = [run.collect(read(trained, "runs", name)) for name in ("novel", "longer")]
    figures = list(blocks_of(runs.chapter(compared, ENGLISH), Figure))
    assert len(figures) == 3
    for figure in figures:
        assert figure.table
        assert [row[2] for row in figure.table.rows] == [bits for numbers in compared for bits in curve_of(numbers)]
        assert Counter(row[0] for row in figure.table.rows) == {"novel": 7, "longer": 7}


def test_scales_and_the_axis_on_the_right_label_the_same_heights() -> None:
    chart = charts.lines(
        [Series("a", [0, 10], [2.0, 4.0])],
        "label",
        right=lambda nats: 2 * nats,
        scales=[Scale("<time>", lambda step: f"{step:g} s")],
    )
    assert "&lt;time&gt;" in chart
    assert "10 s" in chart
    heights = {}
    for kind in ('<text class="y" x="-8" y="', '<text class="y right" x="100%" dx="8" y="'):
        labels = [part.split("</text>")[0].split('">') for part in chart.split(kind)[1:]]
        heights[kind] = {float(value): float(y) for y, value in labels}
    left, right = heights.values()
    assert left[3.0] == right[6.0]


@pytest.mark.parametrize("values", [[12.7531, 12.832], [464.0, 466.0], [1_000_000.0, 1_002_000.0], [5e-5, 5.01e-5]])
def test_labels_of_different_heights_differ(values: list[float]) -> None:
    chart = charts.lines([Series("a", values, values)], "label")
    for part in ('<text class="y" x="-8" y="', '<text class="x '):
        labels = [entry.split("</text>")[0].rpartition(">")[2] for entry in chart.split(part)[1:]]
        assert len(labels) > 1
        assert len({*labels}) == len(labels), labels


def test_report_of_runs_needs_no_torch(trained: Path, tmp_path: Path) -> None:
    words = [
        "--artifacts",
        str(trained),
        "-q",
        "report",
        "runs/novel",
        "runs/longer",
        "--out",
        str(tmp_path / "a.html"),
    ]
    assert "torch" not in loaded_after(f"import cli\nassert cli.main({words!r}) == 0")
    assert (tmp_path / "a.html").stat().st_size < 3_000_000


def test_page_of_hostile_runs_is_inert_silent_and_fits(trained: Path, tmp_path: Path) -> None:
    names = ("hostile", "novel")
    content = reports.render("runs", [read(trained, "runs", name) for name in names], ENGLISH)
    assert not {tag for tag, _ in Elements(content).elements} & {"script", "img", "b", "form", "iframe"}
    path = tmp_path / "report.html"
    path.write_bytes(content)
    with open_browser(tmp_path / "profile") as browser:
        browser.get(path.as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach(entry => { entry.open = true; })")
        assert [url for url in requested_urls(browser) if not url.startswith("data:")] == [path.as_uri()]
        for is_dark in (False, True):
            for width in (390, 1280):
                show(browser, width=width, is_dark=is_dark)
                assert low_contrast(browser) == []
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.get_log("browser") == []
