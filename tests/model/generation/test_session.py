"""Sampling from the command line: prompts of all kinds, three ways of showing, damage found before torch is loaded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model.commands import sample as commands_sample
from model.generation.sampling import SampleOptions
from model.generation.session import Prompt, Session
from model.runs import plan
from model.training import stage
from pipeline import tokenizers
from pipeline.errors import BadConfig, BadData, InputMissing
from pipeline.runtime.progress import Silent
from pipeline.store import artifact
from pipeline.tokenizers import stage as train_tokenizer
from pipeline.tokens import stage as tokenize
from pipeline.tokens.stage import TokenizeOptions
from tests.support.faults import ROOT

TEXT = "".join(f"第{n}回　话说{n}日天明，众人起身。行了{n}里，到了一处！\n" for n in "一二三四五六七八九十")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifacts folder with one run on a Chinese text, by characters."""
    root = tmp_path_factory.mktemp("session") / "artifacts"
    text, val = root.parent / "text.txt", root.parent / "val.txt"
    text.write_text(TEXT, encoding="utf-8")
    val.write_text(TEXT[:200], encoding="utf-8")
    made = train_tokenizer.train(root, "text", *train_tokenizer.sentences_of(root, str(text)), "char", 0)
    tokenizer, found = tokenizers.find(root, made.artifact.ref)
    inputs = tokenize.gather(root, (str(text),), (str(val),))
    tokens = tokenize.tokenize(root, "text", inputs, tokenizer, found, TokenizeOptions(), Silent(), jobs=1).artifact
    settings = {"vocab_size": 0, "steps": 30, "evaluations": 1, "learning_rate": 3e-3}
    planned = plan.plan(tokens, "mini", name="text", settings=settings)
    stage.train(root, planned, device="cpu", resume=False, report=lambda line: None)
    return root


@pytest.fixture
def copied(trained: Path, root: Path) -> Path:
    """The same, to damage."""
    shutil.copytree(trained, root, symlinks=True)
    return root


def command(root: Path, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "cli.py"), "--artifacts", str(root), "sample", *map(str, arguments)]


def sample(
    root: Path, *arguments: object, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **environment}
    return subprocess.run(command(root, *arguments), input=stdin, capture_output=True, env=environment, timeout=120)


def opened(root: Path, said: list[str] | None = None) -> Session:
    return Session(
        artifact.find(root, "runs", "text"), "best", "cpu", "fp32", (said if said is not None else []).append
    )


# Prompts


def test_the_characters_that_a_tokenizer_has_never_seen_are_named(trained: Path) -> None:
    said: list[str] = []
    assert opened(trained, said).prompt("话说龘\a").ids[-2:] == [1, 1]
    assert said == ["warning: the tokenizer has never seen 龘 U+0007"]


def test_a_prompt_may_be_empty_or_longer_than_the_network_sees(trained: Path) -> None:
    said: list[str] = []
    asked = opened(trained, said)
    options = SampleOptions(max_tokens=5)
    whole, seen, empty, ended = (
        asked.samples([prompt], options)[0].token_ids
        for prompt in (asked.prompt("话说" * 20), asked.prompt("话说" * 8), asked.prompt(""), Prompt("", [0]))
    )
    assert whole == seen
    assert empty == ended, "a new text begins, as after an end of one"
    assert said == ["the prompt is 40 tokens long; the network sees the last 16 of them"]


def test_a_prompt_may_be_a_file_or_piped_in(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("\ufeff话说\r\n".encode())
    assert opened(trained).prompt_of_file(str(path)).text == "话说"
    done = sample(trained, "--prompt-file", "-", "--max-tokens", 3, stdin="话说\n".encode())
    assert done.stdout.decode().startswith("话说")


def test_files_that_are_no_prompts_are_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadData, match="not UTF-8 at byte 0"):
        opened(trained).prompt_of_file(str(tmp_path / "bytes"))
    for missing in ("none", "."):
        with pytest.raises(InputMissing):
            opened(trained).prompt_of_file(str(tmp_path / missing))


# Showing


def test_streaming_and_asking_show_what_sampling_shows(trained: Path) -> None:
    options = ("--prompt", "话说", "--max-tokens", 20, "--seed", 3)
    whole = sample(trained, *options).stdout
    assert sample(trained, *options, "--stream").stdout == whole
    assert sample(trained, *options[2:], "--interactive", stdin="话说\n".encode()).stdout == whole


def test_what_was_likely_is_shown_on_request(trained: Path) -> None:
    asked = opened(trained)
    prompt = asked.prompt("话说")
    (made,) = asked.samples([prompt], SampleOptions(max_tokens=4, candidates=3, greedy=True))
    assert "".join(token.text for token in made.tokens) == made.text
    for token in made.tokens:
        assert token.chosen == token.candidates[0]
        assert [each.probability for each in token.candidates] == sorted(
            (each.probability for each in token.candidates), reverse=True
        )
    lines = commands_sample.shown(prompt, made).splitlines()
    assert lines[0] == f"话说{made.text}"
    assert lines[1].split() == ["chosen", "p", "likeliest"]
    assert len(lines) == 2 + len(made.tokens)


def test_ways_of_showing_that_exclude_each_other_are_refused(trained: Path) -> None:
    for options in (["--stream", "--explain"], ["--stream", "--json"], ["--interactive", "--prompt", "话"]):
        assert sample(trained, *options).returncode == 78


# Case 62: nothing is trusted that is not as it was published


def damaged(root: Path, name: str) -> Path:
    return next(artifact.find(root, "runs", "text").path.glob(name))


@pytest.mark.parametrize("name", ["checkpoints/*/model.safetensors", "characters.txt", "tokenizer.json", "result.json"])
def test_case_62_a_missing_or_damaged_file_of_a_run_is_found_before_torch_is_loaded(copied: Path, name: str) -> None:
    path = damaged(copied, name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = loading(copied, {"torch"}, "--prompt", "话说")
    assert done.returncode == 65
    assert path.name in done.stderr
    path.unlink()
    assert sample(copied, "--prompt", "话说").returncode in (65, 66)


def test_case_62_a_tokenizer_that_is_not_the_runs_own_is_refused(copied: Path) -> None:
    found = artifact.find(copied, "runs", "text")
    other = artifact.read(found.path)
    object.__setattr__(other, "manifest", other.manifest.__class__(**{**fields(other.manifest), "tokenizer": "char:0"}))
    with pytest.raises(BadData, match="the tokenizer is char:"):
        Session(other, "best", "cpu", "fp32", lambda line: None)


def fields(manifest: Any) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in manifest.__struct_fields__}


def test_case_62_runs_that_are_not_there_are_missing(trained: Path, tmp_path: Path) -> None:
    assert sample(trained, "nothing").returncode == 66
    assert sample(tmp_path / "empty").returncode == 66


# Case 63: readers that go away, and texts that are none


def test_case_63_a_reader_that_goes_away_is_no_failure(trained: Path) -> None:
    words = " ".join(f"'{word}'" for word in command(trained, "--prompt", "话说", "--stream", "--num-samples", 200))
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -1; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=60
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_case_63_ctrl_c_ends_with_130(trained: Path) -> None:
    words = command(trained, "--prompt", "话说", "--stream", "--num-samples", 100000)
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job of `&` is deaf to it
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard) as process:
        assert process.stdout
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(30) == 130


def test_case_63_the_output_is_utf_8_whatever_the_locale(trained: Path) -> None:
    for locale in ({"LC_ALL": "C"}, {"LANG": "C", "LC_ALL": ""}, {"LC_ALL": "POSIX"}):
        done = sample(trained, "--prompt", "话说", "--max-tokens", 3, **locale)
        assert done.stdout.decode("utf-8").startswith("话说")


def test_case_63_half_a_character_is_no_prompt(trained: Path) -> None:
    with pytest.raises(BadConfig, match=r"U\+D800"):
        opened(trained).prompt("话\ud800")
    words = [*command(trained), b"--prompt", "话".encode()[:2]]
    done = subprocess.run(words, capture_output=True, timeout=60)
    assert done.returncode == 78
    assert len(done.stderr.decode().splitlines()) == 2  # which run it is, and what is wrong


def test_a_sample_for_programs_has_what_was_promised(trained: Path) -> None:
    done = sample(trained, "--prompt", "话说", "--prompt-ids", "2,3", "--max-tokens", 3, "--json")
    printed = json.loads(done.stdout)
    assert [set(each) for each in printed["samples"]] == [{"prompt", "text", "token_ids", "seconds", "ended"}] * 2


def test_sampling_never_loads_torchs_compiler_which_takes_longer_than_the_rest(trained: Path) -> None:
    heavy = {"torch._dynamo", "torch.distributed.tensor", "sympy", "matplotlib"}
    done = loading(trained, heavy, "--prompt", "话说", "--max-tokens", 3)
    assert done.returncode == 0, done.stderr


def loading(root: Path, never: set[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """`sample`, which exits with 99 when it loads one of these modules."""
    program = f"import sys, cli; code = cli.main(sys.argv[1:]); sys.exit(99 if {never!r} & {{*sys.modules}} else code)"
    words = [sys.executable, "-c", program, *command(root, *arguments)[2:]]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
