"""A run opened for generation. Its files are verified first, and torch is only imported once the model is needed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import GPTConfig
from model.runs.run import Report, checkpoint_path, open_tokenizer, require_intact
from pipeline.errors import BadConfig, BadData, InputMissing, TryAgain
from pipeline.runtime.regular_file import regular_file
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import Integers, Tokenizer, Unencodable

if TYPE_CHECKING:
    from model.generation.engine import Sample
    from model.generation.sampling import SampleOptions
    from model.network.gpt import GPT

_MAX_PROMPT_BYTES = 64 << 20  # of a file


@dataclass(frozen=True)
class EncodedPrompt:
    """The text of a prompt and its ids. `separator` is printed between the prompt and the generated text."""

    text: str
    ids: list[int]
    separator: str = ""


class Session:
    """The tokenizer of a run and, loaded on first use, the model of its "best" or "last" checkpoint.

    Raises InputMissing or BadData if a file is missing or differs from the published one.
    """

    def __init__(self, run: Artifact, checkpoint: str, device: str, precision: str, report: Report) -> None:
        self.run, self.checkpoint = run, checkpoint
        self._device, self._precision, self.report = device, precision, report
        self._path = checkpoint_path(run, checkpoint)
        require_intact(run, self._path)
        self.tokenizer: Tokenizer = open_tokenizer(run)
        self._separator = " → " if self.tokenizer.kind == "integers" else ""
        self._model: GPT | None = None

    @property
    def model(self) -> GPT:
        return self.load()

    def load(self) -> GPT:
        """Load the model, unless it is loaded already."""
        if self._model is None:
            from model import device
            from model.generation import quantization
            from model.runs import checkpoint

            model = checkpoint.load_model(self._path, device.pick_device(self._device)).eval()
            self._model = quantization.prepare_for_decoding(model, self._precision)
        return self._model

    def encode_prompt(self, text: str) -> EncodedPrompt:
        """Encode a text as `encode` does, and report a prompt that is too long."""
        ids = encode(self.tokenizer, text, self.report)
        return self._check_length(EncodedPrompt(text, ids, self._separator))

    def prompt_from_ids(self, text: str) -> EncodedPrompt:
        """Parse a prompt of ids, written as 1,2,3."""
        return self._check_length(EncodedPrompt(text, Integers(self.tokenizer.vocab_size).encode(text), " → "))

    def prompt_from_file(self, path: str) -> EncodedPrompt:
        """Encode the text of a file, or of standard input for "-", without its last line break."""
        data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1) if path == "-" else _read_prompt_file(Path(path))
        if len(data) > _MAX_PROMPT_BYTES:
            raise BadConfig(f"{path}: larger than {_MAX_PROMPT_BYTES:,} bytes", hint="pass only the end of the text")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadData(f"{path}: not UTF-8 at byte {error.start:,}", hint="`clean` reads other encodings") from None
        return self.encode_prompt(text.removesuffix("\n").removesuffix("\r"))

    def _check_length(self, prompt: EncodedPrompt) -> EncodedPrompt:
        block_size = self.run.manifest.option("model", GPTConfig).block_size
        if len(prompt.ids) > block_size:
            self.report(
                f"the prompt has {len(prompt.ids):,} tokens, but only the last {block_size:,} fit into the context"
            )
        return prompt

    def sample(
        self, prompts: Sequence[EncodedPrompt], options: SampleOptions, stopped: threading.Event | None = None
    ) -> list[Sample]:
        """Generate one text per prompt, in parallel."""
        from model.generation import engine

        pairs = [(prompt.text, prompt.ids) for prompt in prompts]
        return engine.sample(self.model, self.tokenizer, pairs, options, stopped)

    def stream(
        self, prompt: EncodedPrompt, options: SampleOptions, seed: int, stopped: threading.Event | None = None
    ) -> Iterator[str]:
        """Yield the generated text piece by piece. Raises TryAgain if `stopped` is set."""
        from model.generation.engine import Engine, TokenSequence, stream

        for token in stream(Engine(self.model, 1), TokenSequence(self.tokenizer, prompt.ids, options, seed)):
            yield token.text
            if stopped and stopped.is_set():
                raise TryAgain("stopped by a signal", hint="run the same command again for the same text")


def encode(tokenizer: Tokenizer, text: str, report: Report) -> list[int]:
    """Return the ids of a prompt. Reports characters that are not in the vocabulary.

    Raises BadConfig if the text cannot be encoded in UTF-8, BadData if the tokenizer fails on it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code_point, before = ord(text[error.start]), text[: error.start][-20:]
        raise BadConfig(
            f"the prompt is not valid Unicode: half a character (U+{code_point:04X}) after {before!r}",
            hint="write it in UTF-8, or pass it with --prompt-file",
        ) from None
    if unknown := tokenizer.unknown_characters(text):
        names = (character if character.isprintable() else f"U+{ord(character):04X}" for character in unknown)
        report(f"warning: not in the tokenizer's vocabulary: {' '.join(names)}")
    try:
        return tokenizer.encode(text)
    except Unencodable as error:
        hint = "leave out characters that its vocabulary lacks, or break up the longest part of the prompt"
        raise BadData(f"the tokenizer cannot encode the prompt: {error}", hint=hint) from None


def _read_prompt_file(path: Path) -> bytes:
    """Read the maximum size of a prompt plus one byte. A named pipe is refused, since it may be endless."""
    if not path.exists() or path.is_dir():  # not is_file: it may be a pipe
        raise InputMissing(f"{path}: no such file", hint="check the path")
    if path.is_fifo() and path.parts[:2] not in (("/", "dev"), ("/", "proc")):  # those are of a shell: <(command)
        regular_file(path)
    with open(path, "rb") as file:
        return file.read(_MAX_PROMPT_BYTES + 1)
