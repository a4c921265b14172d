"""Choose how to train on the surveyed inputs: the sections of a recipe, and the reason for each choice."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.clean.report import sentencepiece_flags
from pipeline.clean.report.sentencepiece_flags import Flags, LineStats
from pipeline.errors import BadData
from pipeline.readers.fields import AS_CHAT
from pipeline.runtime.ledger import DEFAULT_MAX_BAD
from pipeline.runtime.terminal import counted, data_size
from pipeline.start import survey as surveys
from pipeline.start.survey import InputSummary, Survey
from pipeline.tokens.stage import DEFAULT_VAL_FRACTION
from pipeline.tokens.survey import FEW_DOCUMENTS, is_divisible

_CHARACTERS_PER_TOKEN = (3.4, 1.3)  # of text that is too short for a vocabulary: of English, of classical Chinese
_TRAINED = 400_000  # characters of the sample that a vocabulary is trained on, in half a second
_AS_CHAT = "these are conversations: `start` with --from RUN tunes a run on them"
_LINE = re.compile(r"[^\n]{1,1000}")
_POSSIBLE_SIZE = re.compile(r"value <= (\d+)")
_KINDS = {
    "md": "Markdown",
    "markdown": "Markdown",
    "jsonl": "JSON lines",
    "json": "JSON",
    "text": "text",
    "txt": "text",
}
Lines = list[tuple[str, str]]


@dataclass(frozen=True)
class InputOptions:
    """Options of [download] and [clean] that decide how the inputs are read."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    text_fields: tuple[str, ...] = ()
    encoding: str = "auto"
    max_bad: float = DEFAULT_MAX_BAD

    def download(self) -> dict[str, Any]:
        """Return the entries of [download] that differ from the default."""
        return {name: list(globs) for name in ("include", "exclude") if (globs := getattr(self, name))}

    def clean(self) -> dict[str, Any]:
        """Return the entries of [clean] that differ from the default."""
        values = {"encoding": self.encoding, "max_bad": self.max_bad, "text_fields": self.text_fields}
        return {name: value for name, value in values.items() if value != getattr(InputOptions(), name)}


def recipe_sections(
    text: Survey, sources: Sequence[str], options: InputOptions, minutes: float, preset: str, settings: Any
) -> dict[str, Any]:
    """Return the sections of the recipe for a surveyed text and the chosen model."""
    train: dict[str, Any] = {"preset": preset, "minutes": minutes}
    if settings:
        train["set"] = dict(settings)
    return {
        "download": {"source": list(sources), **options.download()},
        "clean": {"unit": "chapter", **options.clean()},
        "tokenizer": {"kind": "bpe", "vocab_size": "auto", "keep": True},
        "tokenize": {"val_fraction": DEFAULT_VAL_FRACTION},
        "train": train,
        "sample": {"prompts": list(surveys.prompts(text.sample)), "max_tokens": 60},
    }


def require_divisible(text: Survey) -> None:
    """Raise BadData if a part of the text cannot be held out, as `tokenize` would after it was cleaned."""
    is_complete = text.documents == 1 and text.characters <= len(text.sample)
    if is_complete and not is_divisible(text.sample, DEFAULT_VAL_FRACTION):
        names = ", ".join(entry.reference for entry in text.inputs)
        raise BadData(
            f"{names}: {counted(text.characters, 'characters')}: too short to hold some of it out for validation",
            hint="name a longer text, or more than one",
        )


def count_tokens(text: Survey) -> int:
    """Estimate the number of BPE tokens of the training text, with a vocabulary that is trained on part of the sample.

    Characters per token depend on more than the language: dates and names that recur are few tokens.
    """
    lines = _LINE.findall(text.sample)[:: 1 + len(text.sample) // _TRAINED]
    per_token = _CHARACTERS_PER_TOKEN[0] * (1 - text.chinese) + _CHARACTERS_PER_TOKEN[1] * text.chinese
    if pieces := _count_pieces(lines, _flags(text)):
        line_ends = text.sample.count("\n")  # a token each
        tokens = pieces * (len(text.sample) - line_ends) / sum(map(len, lines)) + line_ends
        per_token = len(text.sample) / tokens
    return int((1 - DEFAULT_VAL_FRACTION) * text.characters / per_token)


def _count_pieces(lines: Sequence[str], flags: Flags) -> int:
    """Return the number of BPE pieces of lines, 0 if they do not allow a vocabulary."""
    import sentencepiece

    size = flags.vocab_size
    for _ in range(2):  # once more with the size that the trainer names
        model = io.BytesIO()
        settings = {**flags.settings(), "vocab_size": size, "model_type": "bpe", "num_threads": 1, "minloglevel": 3}
        try:
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **settings)
        except RuntimeError as error:
            limit = _POSSIBLE_SIZE.search(str(error))
            size = int(limit[1]) if limit else size
            continue
        return sum(map(len, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode(lines)))
    return 0


def vocab_size(text: Survey) -> int:
    """Estimate the vocabulary size that `train-tokenizer` will choose for the text."""
    return _flags(text).vocab_size


def _flags(text: Survey) -> Flags:
    frequencies = Counter(text.sample)
    return sentencepiece_flags.flags(LineStats(frequencies, text.sample.count("\n") + 1, 0, 0))


def describe(text: Survey, vocabulary: int) -> Lines:
    """Return the lines of the plan about the text: a heading each, and the choice with its reason."""
    inputs = ", ".join(_describe_input(entry) for entry in text.inputs)
    return [
        ("text", f"{inputs}; {_describe_scripts(text)}"),
        ("cleaning", _describe_cleaning(text)),
        ("held out", _describe_split(text)),
        ("tokens", f"BPE, about {vocabulary:,} pieces (chosen for {data_size(text.bytes)})"),
    ]


def _describe_input(entry: InputSummary) -> str:
    names = dict.fromkeys(_KINDS.get(name, name.upper()) for name, _ in entry.formats.most_common())
    formats = " and ".join(list(names)[:3])
    is_one = entry.files == 1
    files = "" if is_one else f" {entry.files:,} files ({formats})"
    documents = f" {counted(entry.documents, 'documents')}" if is_one and entry.documents > 1 else ""
    encodings = [name for name in entry.encodings if name not in ("utf-8", "ascii")]
    encoding = f" in {', '.join(encodings)}" if encodings else ""
    notes = f" ({'; '.join(dict.fromkeys(entry.notes))})".replace(AS_CHAT, _AS_CHAT) if entry.notes else ""
    return f"{entry.reference}{files} {data_size(entry.bytes)}{documents}{encoding}{notes}"


def _describe_scripts(text: Survey) -> str:
    names = {"Latin": "English" if text.is_english else "Latin script"}
    shares = [f"{100 * share:.0f} % {names.get(name, name)}" for name, share in text.scripts.items()]
    return ", ".join(shares[:4]) or "no letters"


def _describe_cleaning(text: Survey) -> str:
    if text.chinese > 0.9:
        return "the rules for Chinese text"
    if text.chinese < 0.1:
        return "line ends and control characters only (the text is not Chinese)"
    return "Chinese documents by the rules for Chinese, the others as they are"


def _describe_split(text: Survey) -> str:
    share = f"{100 * DEFAULT_VAL_FRACTION:g} %, chosen by hash"
    if text.documents < FEW_DOCUMENTS:
        return f"{share}: stretches of the text, or whole chapters if there are many"
    return f"{share}: whole documents of about {text.documents:,}"
