"""The command line: help, one JSON object, exit codes, and one-line errors with a hint."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import zstandard

import cli
from model.exchange import export as model_export
from model.presets import PRESETS
from model.runs.tuning import TASKS
from pipeline.clean.options import CHOICES
from pipeline.clean.options import PRESETS as CLEAN_PRESETS
from pipeline.clean.rule_names import RULES
from pipeline.commands.console import Choice
from pipeline.export import corpus as corpus_export
from pipeline.export import export as token_export
from pipeline.refresh.stages import STAGES, TUNINGS
from pipeline.tokenizers import ENCODERS
from pipeline.tokenizers.stage import KINDS as TOKENIZER_KINDS
from pipeline.tokens.options import DEDUP as TOKENIZE_DEDUP
from pipeline.tokens.segments import FORMATS as TOKEN_FORMATS
from pipeline.tokens.split import MODES as VAL_SPLITS
from tests.support.faults import Command

ROOT = Path(__file__).resolve().parent.parent
Inkstone = Callable[..., dict[str, Any]]
FIELDS = {"result", "artifact", "path", "counts", "ledger", "seconds"}
COMMANDS = (
    *("download", "decompress", "clean", "train-tokenizer", "tokenize", "train", "sample"),
    *("serve", "refresh", "demo", "status", "verify"),
)


def run_cli(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120, check=False
    )


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    chapters = (f"第{n}回　某回\n　　话说{n}日天明，众人“起身”。行了{n}里，到了一处！\n" for n in "一二三四五六七八九")
    path.write_text("".join(chapters), encoding="utf-8")
    return path


def test_help_takes_under_300_ms() -> None:
    run_cli("--help")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = run_cli("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # CPU time, which does not depend on other load
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
    assert process.returncode == 0
    assert all(command in process.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_the_global_options(command: str) -> None:
    process = run_cli(command, "--help")
    assert process.returncode == 0
    options = process.stdout.partition("Global options:")[2]
    assert all(option in options for option in ("--artifacts", "--json", "--quiet", "--log-json", "--debug", "--help"))


def test_list_of_commands_has_sections_and_no_cut_lines() -> None:
    text = run_cli("--help").stdout
    headings = ["Data:", "Tokens:", "Model:", "Refresh and maintenance:", "Development:", "Global options:"]
    assert [line for line in text.splitlines() if line in headings] == headings
    assert "..." not in text.partition("Data:")[2]
    for name, command in cli.cli.commands.items():
        assert len(command.get_short_help_str(200)) <= 45, name


@pytest.mark.parametrize("command", sorted(set(cli.cli.commands) - {"bench"}))
def test_every_option_has_a_help_sentence(command: str) -> None:
    options = [option for option in cli.cli.commands[command].params if isinstance(option, click.Option)]
    assert all(option.help and option.help.endswith(".") for option in options)


def test_choices_in_help_are_those_of_the_stages() -> None:
    """The command line repeats the values, so that --help need not import the stages."""
    stages: dict[str, dict[str, tuple[str, ...]]] = {
        "clean": {**CHOICES, "preset": tuple(filter(None, CLEAN_PRESETS)), "without": RULES, "explain": RULES},
        "train-tokenizer": {"kind": TOKENIZER_KINDS},
        "tokenize": {"format": TOKEN_FORMATS, "dedup": TOKENIZE_DEDUP, "encoder": ENCODERS, "val_split": VAL_SPLITS},
        "export": {
            "target_format": tuple({**corpus_export.FORMATS, **token_export.FORMATS, **model_export.FORMATS}),
            "quantize": model_export.FORMATS["gguf"].types,
        },
        "train": {"preset": tuple(PRESETS), "task": tuple(TASKS.values())},
        "refresh": {"through": (*STAGES, *TUNINGS)},
        "schedule": {"through": (*STAGES, *TUNINGS)},
    }
    for name, expected in stages.items():
        parameters = cli.cli.commands[name].params
        choices = {
            str(parameter.name): tuple(parameter.type.choices)
            for parameter in parameters
            if isinstance(parameter.type, Choice)
        }
        assert {key: sorted(values) for key, values in choices.items()} == {
            key: sorted(values) for key, values in expected.items()
        }, name


def test_every_stage_prints_one_json_object_with_its_fields(inkstone: Inkstone, book: Path, tmp_path: Path) -> None:
    compressed = tmp_path / "book.txt.zst"
    compressed.write_bytes(zstandard.compress(book.read_bytes()))
    outcomes = {
        "download": inkstone("download", book),
        "decompress": inkstone("decompress", compressed, "--out", tmp_path / "out"),
        "clean": inkstone("clean", "book"),
        "train-tokenizer": inkstone("train-tokenizer", "book", "--kind", "char"),
        "tokenize": inkstone("tokenize", "book", "--val-fraction", "0.3"),
        "train": inkstone("train", "--tokens", "book", "--preset", "mini", "--set", "vocab_size=0", "--steps", "3"),
        "sample": inkstone("sample", "mini", "--prompt", "话说", "--max-tokens", "5"),
        "status": inkstone("status"),
        "verify": inkstone("verify", "--deep"),
    }
    for command, fields in outcomes.items():
        assert fields.keys() >= FIELDS, command
        assert fields["result"] in ("built", "unchanged"), command
    assert outcomes["clean"]["counts"]["headings"] == 9
    assert outcomes["clean"]["artifact"].startswith("corpora/book/")
    assert {"tokens", "documents", "input_bytes", "dtype", "tokenizer"} <= outcomes["tokenize"].keys()
    train_fields = {
        "steps",
        "tokens",
        "tokens_per_second",
        "val_loss",
        "bits_per_char",
        "bits_per_byte",
        "mfu",
        "checkpoint",
    }
    assert train_fields <= outcomes["train"].keys()
    assert outcomes["sample"]["samples"][0].keys() >= {"prompt", "text", "token_ids", "seconds"}
    assert inkstone("tokenize", "book", "--val-fraction", "0.3")["result"] == "unchanged"


def test_global_options_work_before_and_after_the_command(book: Path, tmp_path: Path) -> None:
    root = tmp_path / "a"
    before = run_cli("--artifacts", root, "--json", "-q", "clean", book)
    after = run_cli("clean", book, "--artifacts", root, "--json", "-q")
    by_variable = run_cli("clean", book, "--json", INKSTONE_ARTIFACTS=str(root))
    assert [json.loads(process.stdout)["result"] for process in (before, after, by_variable)] == [
        "built",
        "unchanged",
        "unchanged",
    ]
    assert before.stderr == after.stderr == ""


def test_quiet_prints_nothing_on_success_and_log_has_events(book: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    process = run_cli("-q", "--log-json", log, "--artifacts", tmp_path / "a", "clean", book)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert {"start", "done"} <= {event["event"] for event in events}


@pytest.fixture
def artifacts(inkstone: Inkstone, book: Path) -> Path:
    """Build a cleaned book, its tokenizer and its tokens; returns the path of the book."""
    inkstone("clean", book)
    inkstone("train-tokenizer", "book", "--kind", "char")
    inkstone("tokenize", "book", "--val-fraction", "0.3")
    return book


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


NINE_LINES = [b'{"text": "number %d of nine documents, each some words long"}\n' % number for number in range(9)]


def broken_inputs(folder: Path) -> dict[str, Path]:
    line, pipe = b'{"text": "one"}\n', folder / "pipe.model"
    if not pipe.exists():
        os.mkfifo(pipe)
    return {
        "missing": folder / "none.txt",
        "pipe": pipe,
        "not-zstd": write(folder, "not.jsonl.zst", b"<html>please log in</html>"),
        "truncated": write(folder, "cut.jsonl.zst", zstandard.compress(line * 5000)[:-9]),
        "bad-line": write(folder, "bad.jsonl", b"".join(NINE_LINES) + b'{"text": \n'),
        "empty": write(folder, "empty.txt", b""),
        "empty-lines": write(folder, "empty.jsonl", b""),
        "not-utf8": write(folder, "gbk.txt", "话说".encode("gbk")),
        "one": write(folder, "one.jsonl", line),
        "recipe": write(folder, "recipe.toml", b"name = 3"),
    }


BAD_INPUT = [
    (("download", "{missing}"), 66, "neither a path nor a source"),
    (("download", "pile"), 78, "--shards"),
    (("download", "pile", "--shards", "44"), 78, "got '44'"),
    (("download", "sample", "--shards", "0"), 78, "--shards"),
    (("download", "http://127.0.0.1:9/x.jsonl.zst", "--jobs", "1"), 75, "check the network"),
    (("decompress", "{missing}"), 66, "no such file"),
    (("download", "{pipe}"), 66, "a FIFO, not a file"),
    (("decompress", "{pipe}"), 66, "a FIFO, not a file"),
    (("decompress", "{empty}"), 78, "not a compressed file"),
    (("decompress", "{not-zstd}"), 65, "a web page where zstd frame 1 should begin"),
    (("decompress", "{truncated}"), 65, "truncated"),
    (("clean", "{missing}"), 66, "no downloaded source"),
    (("clean", "pile"), 66, "run `download pile --shards 0,val` first"),
    (("clean", "{pipe}"), 66, "a FIFO, not a file"),
    (("clean", "{one}", "--variants", "{pipe}"), 66, "a FIFO, not a file"),
    (("clean", "{one}", "--gaiji-map", "{pipe}"), 66, "a FIFO, not a file"),
    (("clean", "{truncated}"), 65, "truncated"),
    (("clean", "{not-zstd}"), 65, "a web page"),
    (("clean", "{bad-line}"), 11, "1 bad-json"),
    (("clean", "{empty}"), 65, "the file is empty"),
    (("clean", "{empty-lines}"), 65, "the file is empty"),
    (("clean", "{not-utf8}"), 65, "--encoding"),
    (("clean", "{one}", "--unit", "verse"), 78, "one of chapter"),
    (("clean", "{one}", "--profile", "poetry"), 78, "one of auto"),
    (("clean", "{one}", "--name", "../one"), 78, "is not a valid artifact name"),
    (("train-tokenizer", "nothing"), 66, "available: book"),
    (("train-tokenizer", "book", "--vocab-size", "8000"), 65, "at most"),
    (("train-tokenizer", "book", "--kind", "wordpiece"), 78, "kinds:"),
    (("train-tokenizer", "{pipe}"), 66, "a FIFO, not a file"),
    (("tokenize", "{one}", "--tokenizer", "{pipe}"), 66, "a FIFO, not a file"),
    (("tokenize", "nothing"), 66, "no corpus"),
    (("tokenize", "book", "--tokenizer", "nothing"), 66, "ready ones: gpt2, r50k_base"),
    (("tokenize", "book", "--val-fraction", "1.5"), 78, "must be in [0, 1)"),
    (("tokenize", "book", "--val", "book"), 78, "both trained on and validated on"),
    (("tokenize", "book", "--format", "parquet"), 78, "formats:"),
    (("tokenize", "{bad-line}", "--tokenizer", "book"), 11, "1 bad-json"),
    (("tokenize", "{truncated}", "--tokenizer", "book"), 65, "truncated"),
    (("train", "--tokens", "nothing"), 66, "available: book"),
    (("train", "nothing"), 66, "available: book"),
    (("train", "{one}"), 78, "`inkstone start "),
    (("train", "novel.txt"), 78, "`inkstone start novel.txt`"),
    (("train", "book", "--tokens", "book"), 78, "name the tokens once"),
    (("train", "--tokens", "book", "--preset", "gpt5"), 78, "use one of: 13m"),
    (("train", "--tokens", "book", "--preset", "gpt2-124m"), 65, "too few for a block of 1024"),
    (("train", "--tokens", "book", "--set", "width"), 78, "key=value"),
    (("train", "--tokens", "book", "--steps", "3", "--minutes", "1"), 78, "exclude each other"),
    (("train", "--tokens", "book", "--minutes", "0"), 78, "must be greater than 0"),
    (("train", "--tokens", "book", "--minutes", "nan"), 78, "--minutes must be a finite number, got nan"),
    (("train", "--tokens", "book", "--minutes", "inf"), 78, "--minutes must be a finite number, got inf"),
    (("train", "--tokens", "book", "--minutes", "1e300"), 78, "minutes must be a number from 0 to 10,000,000"),
    (("train", "--tokens", "book", "--set", "clip=inf"), 78, "clip must be a number from 1e-06 to 1e+30, got inf"),
    (("download", "sample", "--deadline", "nan"), 78, "--deadline must be a number of 0 or more, got nan"),
    (("download", "sample", "--deadline=-1"), 78, "--deadline must be a number of 0 or more, got -1"),
    (("refresh", "sample", "--wait", "inf"), 78, "--wait must be a number of 0 or more, got inf"),
    (("clean", "{one}", "--max-bad", "nan"), 78, "--max-bad must be a finite number"),
    (("refresh", "sample", "--device", "cpu:abc"), 78, "no device 'cpu:abc'"),
    (("train", "--tokens", "book", "--set", "beta1=2"), 78, "beta1"),
    (("train", "--tokens", "book", "--set", "seed=-1"), 78, "seed"),
    (("train", "--tokens", "book", "--counting"), 78, "exclude each other"),
    (("train", "--tokens", "book", "--set", "block_size=16", "--device", "tpu"), 78, "no device"),
    (("sample", "nothing", "--prompt", "x"), 66, "`train` creates one"),
    (("sample",), 66, "`train` creates one"),
    (("refresh", "{missing}"), 66, "no such recipe"),
    (("refresh", "{pipe}"), 66, "a FIFO, not a file"),
    (("refresh", "{recipe}"), 78, "Expected `str`"),
    (("refresh", ROOT / "pipeline" / "recipes" / "sample.toml", "--through", "nowhere"), 78, "stages:"),
    (("verify", "nothing"), 66, "no artifact here"),
    (("clean",), 2, "Missing argument"),
    (("clean", "{one}", "--min-chars", "many"), 2, "not a valid integer"),
    (("clena",), 2, "No such command"),
]


@pytest.mark.parametrize("name", ["-draft.txt", "--draft.txt"])
def test_file_whose_name_begins_like_an_option(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["clean", name]) == 2
    assert capsys.readouterr().err.endswith(" — see --help\n")
    Path(name).write_text("text")
    assert cli.main(["clean", name]) == 2
    assert capsys.readouterr().err.endswith(f" — for the file write ./{name}\n")


@pytest.mark.parametrize("below", ["", "x/y"])
def test_file_in_place_of_the_artifacts_folder_is_named(tmp_path: Path, below: str) -> None:
    (file := tmp_path / "book.txt").write_text("text")
    process = run_cli("--artifacts", file / below, "clean", file)
    assert process.returncode == 73
    assert process.stderr.startswith(f"error: {file}: a file, not a folder for the artifacts — name another")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nothing can be created")
def test_folder_of_artifacts_that_cannot_be_created_is_no_missing_input(tmp_path: Path) -> None:
    (file := tmp_path / "book.txt").write_text("text")
    process = run_cli("--artifacts", "/proc/none/store", "clean", file)
    assert process.returncode == 73
    assert process.stderr.endswith(
        "/proc/none/store: cannot create the folder of the artifacts here — name another folder with --artifacts\n"
    )


@pytest.mark.usefixtures("artifacts")
def test_bad_input_prints_one_line_with_hint_and_publishes_nothing(root: Path, tmp_path: Path) -> None:
    files = {f"{{{name}}}": path for name, path in broken_inputs(tmp_path).items()}
    before = published(root)
    for words, code, message in BAD_INPUT:
        arguments = [files.get(str(word), word) for word in words]
        run = Command(root, ("--json", *arguments)).run_forked()
        assert run.code == code, (arguments, run.err)
        outcome = json.loads(run.out)
        assert (outcome["result"], outcome["exit_code"]) == ("failed", code), arguments
        assert message in f"{outcome['error']} {outcome['hint']}", (arguments, outcome)
        assert outcome["hint"], arguments
        assert run.err.strip().splitlines()[-1].startswith("error: "), arguments
        assert "Traceback" not in run.err
        assert published(root) == before, arguments


def published(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("manifest.json")}


def test_debug_prints_traceback(tmp_path: Path) -> None:
    assert "Traceback" in run_cli("--debug", "clean", tmp_path / "none.txt").stderr


@pytest.mark.usefixtures("artifacts")
def test_rejects_of_refused_corpus_are_kept_in_named_folder(inkstone: Inkstone, tmp_path: Path) -> None:
    outcome = inkstone("clean", broken_inputs(tmp_path)["bad-line"], code=11)
    folder = Path(outcome["hint"].rpartition("the rejects are in ")[2])
    rejected = json.loads(
        zstandard.ZstdDecompressor().stream_reader((folder / "rejects.jsonl.zst").read_bytes()).read()
    )
    assert (rejected["file"], rejected["line"], rejected["reason"]) == ("bad.jsonl", 10, "bad-json")


@pytest.mark.usefixtures("artifacts")
def test_damaged_artifact_is_reported_and_not_used(inkstone: Inkstone, root: Path) -> None:
    victim = next((root / "tokens" / "book").glob("*/train-00000-0000.bin")).resolve()  # not in `current`
    victim.write_bytes(victim.read_bytes()[:-2])
    outcome = inkstone("verify", code=65)
    assert str(victim.parent.name) in outcome["error"]
    inkstone("train", "--tokens", "book", "--preset", "mini", "--set", "vocab_size=0", "--steps", "1", code=65)
    assert inkstone("tokenize", "book", "--val-fraction", "0.3")["result"] == "built"
    assert inkstone("verify", "--deep")["result"] == "unchanged"


def test_closed_pipe_is_not_an_error(inkstone: Inkstone, root: Path) -> None:
    inkstone("train", "--preset", "mini", "--counting", "--steps", "2")
    command = f"{sys.executable} {ROOT / 'cli.py'} --artifacts {root} sample mini --prompt-ids 1 --num-samples 50"
    piped = ["bash", "-o", "pipefail", "-c", f"{command} | true"]
    process = subprocess.run(piped, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


def test_no_command_prints_help() -> None:
    process = run_cli()
    assert (process.returncode, process.stderr) == (0, "")
    assert "tokenize" in process.stdout
