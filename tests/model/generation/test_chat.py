"""Chats: the prompt of each answer, what is left out of it, and the command on a terminal and in a pipe."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cli
from model.generation import engine
from model.generation.chat import Chat, TooLong
from model.generation.sampling import SampleOptions
from model.generation.session import Session
from pipeline.errors import BadConfig, TryAgain
from pipeline.store import artifact
from tests.support.exchanging import GPT2, LETTERS, publish_run
from tests.support.tuning import CHAT, messages

GREEDY = SampleOptions(max_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifacts folder with a run that has a chat template, and one that has none."""
    folder = tmp_path_factory.mktemp("chat")
    publish_run(folder, GPT2, LETTERS, name="base")
    publish_run(folder, replace(GPT2, vocab_size=CHAT.vocab_size), CHAT, name="talk")
    return folder


@pytest.fixture
def session(root: Path) -> Session:
    return Session(artifact.find(root, "runs", "talk"), "best", "cpu", "fp32", lambda line: None)


def answer(session: Session, turns: list[dict[str, str]]) -> str:
    """Generate the greedy answer to turns as `sample` does, from the ids of the template."""
    ids = CHAT.encode_messages(turns, add_generation_prompt=True)
    (sample,) = engine.sample(session.model, CHAT, [("", ids)], GREEDY)
    return sample.text


def run(root: Path, *words: str) -> int:
    return cli.main(["--artifacts", str(root), "chat", "talk", "--device", "cpu", "--precision", "fp32", *words])


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_an_answer_is_that_of_the_ids_of_all_turns_so_far(session: Session) -> None:
    chat, pieces = Chat(session, GREEDY, "Add."), list[str]()
    turns = [{"role": "system", "content": "Add."}]
    for question in ("1+1", "石", "2+2"):
        turns += [{"role": "user", "content": question}]
        expected = answer(session, turns)
        assert chat.ask(question, pieces.append).text == expected
        turns += [{"role": "assistant", "content": expected}]
    assert chat.messages == turns
    assert "".join(pieces) == "".join(turn["content"] for turn in turns if turn["role"] == "assistant")


def test_a_full_context_leaves_out_the_oldest_turns_and_keeps_the_system(session: Session) -> None:
    chat = Chat(session, GREEDY, "Add.")
    dropped = [chat.ask(f"{number}+1", lambda text: None).dropped for number in range(6)]
    assert dropped[0] == 0
    assert dropped == sorted(dropped)
    assert dropped[-1] > 0
    assert chat.messages[-1]["content"] == answer(session, [chat.messages[0], *chat.messages[1 + dropped[-1] : -1]])
    assert len(chat.messages) == 1 + 2 * 6


def test_a_turn_that_is_refused_does_not_join(session: Session) -> None:
    chat = Chat(session, GREEDY)
    with pytest.raises(TooLong, match="the last turn has 1"):
        chat.ask("1" * 100, print)
    with pytest.raises(BadConfig, match="half a character"):
        chat.ask("\ud800", print)
    assert chat.messages == []


def test_an_interrupted_answer_joins_as_far_as_it_was_generated(session: Session) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    chat = Chat(session, GREEDY)
    reply = chat.ask("1+1", interrupt)
    assert reply.ended == "interrupted"
    assert chat.messages == messages("1+1", reply.text)


def test_a_signal_ends_an_answer(session: Session) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(TryAgain):
        Chat(session, GREEDY).ask("1+1", lambda text: None, stopped)


def test_a_pipe_is_a_conversation_with_one_turn_a_line(
    root: Path, session: Session, pipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = answer(session, messages("1+1"))
    second = answer(session, messages("1+1", first, "2"))
    pipe("1+1\n\n2\n/reset\n1+1\n/system Add.\n1+1\n/quit\n3\n")
    assert run(root, "--greedy", "--max-tokens", "8") == 0
    with_system = answer(session, [{"role": "system", "content": "Add."}, *messages("1+1")])
    assert capsys.readouterr().out == f"{first}\n{second}\n{first}\n{with_system}\n"


def test_json_holds_the_messages_and_how_each_answer_ended(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "--prompt", "1+1", "--prompt", "2", "--system", "Add.", "--max-tokens", "3", "--json") == 0
    fields = json.loads(capsys.readouterr().out)
    assert [turn["role"] for turn in fields["messages"]] == ["system", *("user", "assistant") * 2]
    assert [reply["text"] for reply in fields["answers"]] == [turn["content"] for turn in fields["messages"][2::2]]
    assert {reply["ended"] for reply in fields["answers"]} <= {"length", "end of turn", "end of text"}


def test_a_saved_conversation_is_one_that_clean_reads(root: Path, pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    pipe(f"1+1\n/save {path}\n2\n/save {path}\n")
    assert run(root, "--max-tokens", "5", "--greedy") == 0
    saved = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert saved[1][: len(saved[0])] == saved[0]
    assert len(saved[1]) == 4
    assert cli.main(["--artifacts", str(root), "-q", "clean", str(path), "--profile", "chat", "--max-bad", "1"]) == 0
    corpus = artifact.find(root, "corpora", "talks").manifest
    assert corpus.ledger["documents"]["in"] == 2


@pytest.mark.parametrize("line", ["/reste", "/save", "/save /nowhere/talk.jsonl"])
def test_a_wrong_command_ends_a_pipe_with_an_error(
    root: Path, pipe: Any, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(f"{line}\n")
    assert run(root) != 0
    assert "error" in capsys.readouterr().err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal as standard input; its other end, to type into."""
    keyboard, screen = os.openpty()
    with open(screen, encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield keyboard
    os.close(keyboard)


def test_a_terminal_prints_errors_and_goes_on(
    root: Path, session: Session, terminal: int, capsys: pytest.CaptureFixture[str]
) -> None:
    os.write(terminal, f"{'1' * 100}\n/what\n/help\n1+1\n\x04".encode())
    assert run(root, "--greedy", "--max-tokens", "8") == 0
    printed = capsys.readouterr()
    assert answer(session, messages("1+1")) in printed.out
    for part in ("the last turn has 1", "/what: no such command", "/save FILE", "Ctrl-D"):
        assert part in printed.err


def test_a_base_model_is_for_sample(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--artifacts", str(root), "chat", "base", "--prompt", "1+1"]) == BadConfig.exit_code
    error = capsys.readouterr().err
    assert "has no chat template" in error
    assert "`inkstone sample base`" in error
