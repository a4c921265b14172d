"""A run that is asked to go on with texts: its files looked at first, torch loaded only then."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.runs import run as runs
from model.runs.run import Report
from pipeline.errors import BadConfig, BadData, InputMissing, TryAgain
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Integers, Tokenizer, Unencodable

if TYPE_CHECKING:
    from model.generation.engine import Sample
    from model.generation.sampling import SampleOptions
    from model.network.gpt import GPT

_LONGEST = 64 << 20  # bytes of a prompt's file


@dataclass(frozen=True)
class Prompt:
    """A text to go on with, and its ids. `joint` is shown between them and what follows."""

    text: str
    ids: list[int]
    joint: str = ""


class Session:
    """A run's tokenizer and, once it is asked for, the model of its "best" or "last" checkpoint.

    Raises InputMissing or BadData where its files are not those that were published.
    """

    def __init__(self, run: Artifact, checkpoint: str, device: str, precision: str, report: Report) -> None:
        self.run, self.checkpoint = run, checkpoint
        self._device, self._precision, self.report = device, precision, report
        self._path = runs.checkpoint_path(run, checkpoint)
        runs.require_whole(run, self._path)
        self.tokenizer: Tokenizer = runs.open_tokenizer(run)
        counts = self.tokenizer.kind == "integers"
        self._joint = " → " if counts else ""
        self._model: GPT | None = None

    @property
    def model(self) -> GPT:
        if self._model is None:
            from model import device
            from model.generation import quantization as packed
            from model.runs import checkpoint

            model = checkpoint.load_model(self._path, device.pick(self._device)).eval()
            self._model = packed.quick(model, self._precision)
        return self._model

    def prompt(self, text: str) -> Prompt:
        """A text to go on with. Says which of its characters the tokenizer has never seen, and where it is too long.

        Raises BadConfig for a text that cannot be written in UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = text[: error.start][-20:]
            what = f"the prompt is no Unicode text: half a character (U+{ord(text[error.start]):04X}) after {shown!r}"
            raise BadConfig(what, hint="write it as UTF-8, perhaps with --prompt-file") from None
        if unknown := self.tokenizer.unknown(text):
            shown = " ".join(each if each.isprintable() else f"U+{ord(each):04X}" for each in unknown)
            self.report(f"warning: the tokenizer has never seen {shown}")
        try:
            return self._fitted(Prompt(text, self.tokenizer.encode(text), self._joint))
        except Unencodable as error:
            raise BadData(f"the tokenizer gives up on the prompt: {error}", hint="break up its longest part") from None

    def prompt_of_ids(self, text: str) -> Prompt:
        """Ids to go on with, written as 1,2,3."""
        return self._fitted(Prompt(text, Integers(self.tokenizer.vocab_size).encode(text), " → "))

    def prompt_of_file(self, path: str) -> Prompt:
        """A file's text, without its last line end; "-" is what is piped in."""
        data = sys.stdin.buffer.read(_LONGEST + 1) if path == "-" else _head(Path(path))
        if len(data) > _LONGEST:
            raise BadConfig(f"{path}: more than {_LONGEST:,} bytes are no prompt", hint="cut out its end")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadData(f"{path}: not UTF-8 at byte {error.start:,}", hint="`clean` reads other encodings") from None
        return self.prompt(text.removesuffix("\n").removesuffix("\r"))

    def _fitted(self, prompt: Prompt) -> Prompt:
        seen = self.run.manifest.options["model"]["block_size"]
        if len(prompt.ids) > seen:
            self.report(f"the prompt is {len(prompt.ids):,} tokens long; the network sees the last {seen:,} of them")
        return prompt

    def samples(
        self, prompts: Sequence[Prompt], options: SampleOptions, stopped: threading.Event | None = None
    ) -> list[Sample]:
        """A continuation of each prompt, side by side."""
        from model.generation import engine as generate

        asked = [(prompt.text, prompt.ids) for prompt in prompts]
        return generate.sample(self.model, self.tokenizer, asked, options, stopped)

    def stream(
        self, prompt: Prompt, options: SampleOptions, seed: int, stopped: threading.Event | None = None
    ) -> Iterator[str]:
        """A continuation of a prompt, as it is written."""
        from model.generation.engine import Continuation, Engine, stream

        for token in stream(Engine(self.model, 1), Continuation(self.tokenizer, prompt.ids, options, seed)):
            yield token.text
            if stopped and stopped.is_set():
                raise TryAgain("stopped by a signal", hint="the same command gives the same text")


def _head(path: Path) -> bytes:
    if not path.exists() or path.is_dir():  # it may be a pipe
        raise InputMissing(f"{path}: no such file", hint="check the path")
    with open(path, "rb") as file:
        return file.read(_LONGEST + 1)
