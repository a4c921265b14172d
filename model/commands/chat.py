"""The chat command."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from model.commands.options import CHECKPOINT, DEVICE, PRECISION, SAMPLING
from model.generation.sampling import SampleOptions
from pipeline.commands.console import Command, Outcome, Settings, option_group
from pipeline.commands.options import find_artifact
from pipeline.errors import BadConfig, BadData, InkstoneError, StorageFailed
from pipeline.runtime.signals import stop_on_sigterm
from pipeline.runtime.terminal import counted, json_line, printable_block, write

if TYPE_CHECKING:
    from model.generation.chat import Answer, Chat

_PROMPT_GRACE = 0.01  # seconds until SIGTERM ends the command while a turn is typed: nothing is lost
_HELP = """/reset          begin a new conversation
/system TEXT    begin a new conversation with this system message; without TEXT, without one
/save FILE      append the conversation to a file, as a line of JSON that `clean --profile chat` reads
/help           print this
/quit           end, as does Ctrl-D
Ctrl-C stops an answer."""


@click.command(cls=Command)
@click.argument("reference", metavar="[RUN]", default="")
@option_group(
    "Conversation",
    click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Answer this turn and stop (repeatable)."),
    click.option("--system", default="", metavar="TEXT", help="System message, before the first turn."),
)
@SAMPLING
@option_group("Model", CHECKPOINT, PRECISION, DEVICE)
def chat(
    settings: Settings,
    reference: str,
    prompts: tuple[str, ...],
    system: str,
    checkpoint: str,
    precision: str,
    device: str,
    **options: Any,
) -> Outcome:
    """Talk with a run tuned on conversations.

    Without RUN, the newest run is used. Without --prompt, the turns are the lines of standard input, and each answer is
    printed as it is generated. If a conversation outgrows the context of the model, the oldest turns are left out.
    Type /help for the commands.

    \b
    Examples:
      inkstone chat talks
      inkstone chat talks --prompt 阿渊是谁？ --greedy
    """
    from model.generation.chat import Chat
    from model.generation.session import Session

    run = find_artifact(settings, "runs", reference)
    with settings.progress.wait(f"loading {run.ref}"):
        session = Session(run, checkpoint, device, precision, settings.progress.note)
        talk = Chat(session, SampleOptions(**options), system)
        session.load()
    conversation = _Conversation(settings, talk, is_interactive=not prompts and sys.stdin.isatty())
    if prompts:
        for text in prompts:
            conversation.ask(text)
    else:
        conversation.read()
    return Outcome(
        "built",
        run.ref,
        run.path,
        {"answers": len(conversation.answers)},
        extra={"messages": talk.messages, "answers": [answer._asdict() for answer in conversation.answers]},
        always=True,
    )


@dataclass
class _Conversation:
    """A conversation on standard input and output. Lines that begin with a slash are commands."""

    settings: Settings
    chat: Chat
    is_interactive: bool
    answers: list[Answer] = field(default_factory=list)

    def read(self) -> None:
        """Answer the lines of standard input until its end or /quit. On a terminal, an error does not end the loop."""
        marker = self._open_terminal() if self.is_interactive else ""
        while True:
            try:
                with stop_on_sigterm(self.settings.progress.stop, grace=_PROMPT_GRACE):
                    text = input(marker).strip()
            except EOFError:
                self._print("\n" if marker else "")
                return
            if text == "/quit":
                return
            try:
                if text.startswith("/"):
                    self._run_command(text)
                elif text:
                    self.ask(text)
            except (BadConfig, BadData, StorageFailed) as error:
                if not self.is_interactive:
                    raise
                self._note(f"error: {error.message}", error)

    def ask(self, text: str) -> None:
        """Answer a turn. Report turns that were left out, and an answer that was cut off."""
        answer = self.chat.ask(text, self._print, self.settings.progress.stop)
        self._print("\n")
        self.answers.append(answer)
        if answer.dropped:
            self._note(
                f"left out {counted(answer.dropped, 'messages')} from the beginning: the context of the model is full"
            )
        if answer.ended == "length":
            self._note("the answer was cut off at --max-tokens")

    def _run_command(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        argument = argument.strip()
        if name == "/help":
            self._note(_HELP)
        elif name == "/save" and argument:
            self._save(Path(argument))
        elif name == "/system":
            self.chat.reset(argument)
            self._note("new conversation" + (" with this system message" if argument else ""))
        elif name == "/reset" and not argument:
            self.chat.reset(self.chat.system)
            self._note("new conversation")
        else:
            raise BadConfig(f"{text}: no such command", hint="/help lists the commands")

    def _save(self, path: Path) -> None:
        if not any(message["role"] == "assistant" for message in self.chat.messages):
            raise BadConfig("there is no conversation to save yet", hint="ask something first")
        try:
            with path.expanduser().open("a", encoding="utf-8") as file:
                file.write(json_line({"messages": self.chat.messages}) + "\n")
        except OSError as error:
            raise StorageFailed(f"{path}: {(error.strerror or str(error)).lower()}", hint="name another file") from None
        self._note(f"saved to {path}")

    def _open_terminal(self) -> str:
        """Enable line editing and history, and print how to begin. Return the prompt of `input`."""
        with suppress(ImportError):
            import readline  # noqa: F401 - `input` then uses it
        self._note(f"{self.chat.run.ref}: type a turn, /help for commands, Ctrl-D to end")
        return "› "

    def _print(self, text: str) -> None:
        if not self.settings.json:
            write(printable_block(text))

    def _note(self, text: str, error: InkstoneError | None = None) -> None:
        hint = f" ({error.hint})" if error and error.hint else ""
        if not self.is_interactive:
            self.settings.progress.note(f"{text}{hint}")
            return
        from rich.console import Console

        Console(stderr=True, highlight=False).print(f"{text}{hint}", style="red" if error else "dim", markup=False)
