"""Sampling from the command line: prompts, output modes, and damaged runs.

Cases are those of docs/design/reliability.md.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from model.commands import sample as commands_sample
from model.generation.sampling import SampleOptions
from model.generation.session import EncodedPrompt, Session, encode
from model.runs import plan
from model.training import stage
from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData, InputMissing, Terminated
from pipeline.runtime.progress import SilentProgress
from pipeline.runtime.signals import stop_on_sigterm
from pipeline.store import artifact
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.options import TokenizeOptions
from tests.support.faults import ROOT

TEXT = "".join(f"第{n}回　话说{n}日天明，众人起身。行了{n}里，到了一处！\n" for n in "一二三四五六七八九十")


@pytest.fixture(scope="module")
def trained_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifacts folder with one run, trained on the characters of a Chinese text."""
    root = tmp_path_factory.mktemp("session") / "artifacts"
    text, val = root.parent / "text.txt", root.parent / "val.txt"
    text.write_text(TEXT, encoding="utf-8")
    val.write_text(TEXT[:200], encoding="utf-8")
    built = tokenizers_stage.train(root, "text", tokenizers_stage.find_sentences(root, [str(text)]), "char", 0)
    tokenizer, source = tokenizers.find(root, built.artifact.ref)
    inputs = tokens_stage.gather_inputs(root, (str(text),), (str(val),))
    tokens = tokens_stage.tokenize(
        root, "text", inputs, tokenizer, source, TokenizeOptions(), SilentProgress(), jobs=1
    ).artifact
    settings = {"vocab_size": 0, "steps": 30, "evaluations": 1, "learning_rate": 3e-3}
    planned = plan.make_plan(tokens, "mini", name="text", settings=settings)
    stage.train(root, planned, device="cpu", resume=False, report=lambda line: None)
    return root


@pytest.fixture
def copied_root(trained_root: Path, root: Path) -> Path:
    """A copy of `trained_root`, to be damaged."""
    shutil.copytree(trained_root, root, symlinks=True)
    return root


def command(root: Path, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "sample", *map(str, arguments)]


def run_sample(
    root: Path, *arguments: object, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **environment}
    return subprocess.run(command(root, *arguments), input=stdin, capture_output=True, env=environment, timeout=120)


def run_sample_without(modules: set[str], root: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `sample`; the exit code is 99 if it loads one of the modules."""
    program = (
        f"import sys, cli; code = cli.main(sys.argv[1:]); sys.exit(99 if {modules!r} & {{*sys.modules}} else code)"
    )
    words = [sys.executable, "-c", program, *command(root, *arguments)[2:]]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)


def open_session(root: Path, messages: list[str] | None = None) -> Session:
    report = (messages if messages is not None else []).append
    return Session(artifact.find(root, "runs", "text"), "best", "cpu", "fp32", report)


# Prompts


def test_unknown_characters_are_reported(trained_root: Path) -> None:
    messages: list[str] = []
    assert open_session(trained_root, messages).encode_prompt("话说龘\a").ids[-2:] == [1, 1]
    assert messages == ["warning: not in the tokenizer's vocabulary: 龘 U+0007"]


def test_a_prompt_may_be_empty_or_longer_than_the_block_size(trained_root: Path) -> None:
    messages: list[str] = []
    session = open_session(trained_root, messages)
    prompts = (
        session.encode_prompt("话说" * 20),
        session.encode_prompt("话说" * 8),
        session.encode_prompt(""),
        EncodedPrompt("", [0]),
    )
    options = SampleOptions(max_tokens=5)
    long, block, empty, eos = (session.sample([prompt], options)[0].token_ids for prompt in prompts)
    assert long == block
    assert empty == eos, "both start a new document"
    assert messages == ["the prompt has 40 tokens, but only the last 16 fit into the context"]


def test_a_prompt_may_be_a_file_or_standard_input(trained_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("\ufeff话说\r\n".encode())
    assert open_session(trained_root).prompt_from_file(str(path)).text == "话说"
    process = run_sample(trained_root, "--prompt-file", "-", "--max-tokens", 3, stdin="话说\n".encode())
    assert process.stdout.decode().startswith("话说")


def test_invalid_prompt_files_raise(trained_root: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadData, match="not UTF-8 at byte 0"):
        open_session(trained_root).prompt_from_file(str(tmp_path / "bytes"))
    for missing in ("none", "."):
        with pytest.raises(InputMissing):
            open_session(trained_root).prompt_from_file(str(tmp_path / missing))


# Output


def test_stream_and_interactive_print_what_sample_prints(trained_root: Path) -> None:
    options = ("--prompt", "话说", "--max-tokens", 20, "--seed", 3)
    expected = run_sample(trained_root, *options).stdout
    assert run_sample(trained_root, *options, "--stream").stdout == expected
    assert run_sample(trained_root, *options[2:], "--interactive", stdin="话说\n".encode()).stdout == expected


def test_candidates_are_shown_in_order_of_probability(trained_root: Path) -> None:
    session = open_session(trained_root)
    prompt = session.encode_prompt("话说")
    (result,) = session.sample([prompt], SampleOptions(max_tokens=4, candidates=3, greedy=True))
    assert "".join(token.text for token in result.tokens) == result.text
    for token in result.tokens:
        assert token.chosen == token.candidates[0]
        probabilities = [candidate.probability for candidate in token.candidates]
        assert probabilities == sorted(probabilities, reverse=True)
    lines = commands_sample.format_sample(prompt, result).splitlines()
    assert lines[0] == f"话说{result.text}"
    assert lines[1].split() == ["chosen", "p", "likeliest"]
    assert len(lines) == 2 + len(result.tokens)


def test_conflicting_output_options_exit_with_78(trained_root: Path) -> None:
    for options in (["--stream", "--explain"], ["--stream", "--json"], ["--interactive", "--prompt", "话"]):
        assert run_sample(trained_root, *options).returncode == 78


def test_json_output_has_the_documented_fields(trained_root: Path) -> None:
    process = run_sample(trained_root, "--prompt", "话说", "--prompt-ids", "2,3", "--max-tokens", 3, "--json")
    samples = json.loads(process.stdout)["samples"]
    assert [set(fields) for fields in samples] == [{"prompt", "text", "token_ids", "seconds", "ended"}] * 2


def test_sampling_does_not_import_slow_modules(trained_root: Path) -> None:
    """torch's compiler takes longer to import than all other work."""
    modules = {"torch._dynamo", "torch.distributed.tensor", "sympy", "matplotlib"}
    process = run_sample_without(modules, trained_root, "--prompt", "话说", "--max-tokens", 3)
    assert process.returncode == 0, process.stderr


# Case 62: damaged runs


@pytest.mark.parametrize("name", ["checkpoints/*/model.safetensors", "characters.txt", "tokenizer.json", "result.json"])
def test_damaged_or_missing_files_are_found_before_torch_is_loaded(copied_root: Path, name: str) -> None:
    """Case 62."""
    path = next(artifact.find(copied_root, "runs", "text").path.glob(name))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    process = run_sample_without({"torch"}, copied_root, "--prompt", "话说")
    assert process.returncode == 65
    assert path.name in process.stderr
    path.unlink()
    assert run_sample(copied_root, "--prompt", "话说").returncode in (65, 66)


def test_a_tokenizer_other_than_the_runs_is_refused(copied_root: Path) -> None:
    """Case 62."""
    run = artifact.read(artifact.find(copied_root, "runs", "text").path)
    object.__setattr__(run, "manifest", run.manifest.__class__(**{**fields(run.manifest), "tokenizer": "char:0"}))
    with pytest.raises(BadData, match="the tokenizer is char:"):
        Session(run, "best", "cpu", "fp32", lambda line: None)


def fields(manifest: Any) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in manifest.__struct_fields__}


def test_a_missing_run_exits_with_66(trained_root: Path, tmp_path: Path) -> None:
    """Case 62."""
    assert run_sample(trained_root, "nothing").returncode == 66
    assert run_sample(tmp_path / "empty").returncode == 66


# Case 63: closed pipes, signals and invalid text


def test_a_closed_pipe_is_not_an_error(trained_root: Path) -> None:
    """Case 63."""
    arguments = ("--prompt", "话说", "--stream", "--num-samples", 200)
    words = " ".join(f"'{word}'" for word in command(trained_root, *arguments))
    script = f"{words} | head -1; exit ${{PIPESTATUS[0]}}"
    process = subprocess.run(["bash", "-c", script], capture_output=True, timeout=60)
    assert process.returncode == 0
    assert b"Traceback" not in process.stderr


def test_ctrl_c_exits_with_130(trained_root: Path) -> None:
    """Case 63."""
    words = command(trained_root, "--prompt", "话说", "--stream", "--num-samples", 60000)
    # A background job of a shell ignores SIGINT, and so would its children.
    reset_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=reset_sigint) as process:
        assert process.stdout
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(30) == 130


def test_output_is_utf_8_in_every_locale(trained_root: Path) -> None:
    """Case 63."""
    locales: list[dict[str, Any]] = [{"LC_ALL": "C"}, {"LANG": "C", "LC_ALL": ""}, {"LC_ALL": "POSIX"}]
    for locale in locales:
        process = run_sample(trained_root, "--prompt", "话说", "--max-tokens", 3, **locale)
        assert process.stdout.decode("utf-8").startswith("话说")


def test_half_a_character_raises_bad_config(trained_root: Path) -> None:
    """Case 63."""
    with pytest.raises(BadConfig, match=r"U\+D800"):
        open_session(trained_root).encode_prompt("话\ud800")
    words: list[str | bytes] = [*command(trained_root), b"--prompt", "话".encode()[:2]]
    process = subprocess.run(words, capture_output=True, timeout=60)
    assert process.returncode == 78
    assert len(process.stderr.decode().splitlines()) == 2  # the name of the run, and the error


def test_prompt_that_is_awaited_ends_with_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr("sys.stdin", os.fdopen(reader))
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with stop_on_sigterm(stop := threading.Event()), pytest.raises(Terminated):
        commands_sample.converse(cast(Session, None), SampleOptions(), stop)  # the session is needed for a prompt only
    os.close(writer)


def test_prompt_of_characters_that_the_vocabulary_lacks_is_refused_with_that_hint() -> None:
    tokenizer = tokenizers.FastTokenizer(tokenizers.character_json({"\n": 0, "a": 1}, "\n"), "letters", 0)
    with pytest.raises(BadData, match="leave out characters that its vocabulary lacks"):
        encode(tokenizer, "砚", print)
