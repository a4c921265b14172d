"""Documents and cloze questions of JSON lines with a field `text`, as tasks of lm-evaluation-harness.

lm_eval passes the object of `--metadata` as keyword arguments, beside others that are ignored here.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_CHOICES, _CONTEXT, _LENGTHS = 4, 200, range(8, 101)  # per question; characters before a sentence, and of one
_NEIGHBOURS = 20  # sentences of about the same length, from which the wrong choices are drawn
_SENTENCE = re.compile(r"\s*\S.*?(?:[。！？!?]|\.(?=\s|$)|(?=\n)|$)[”’」』）)\"']*", re.DOTALL)


def documents(corpus: str, limit: int = 1000, **_: Any) -> Any:
    """Return the data set of the first `limit` documents of the file `corpus`, which may be compressed with zstd."""
    return _dataset([{"text": text} for _, text in zip(range(limit), read_texts(Path(corpus)), strict=False)])


def questions(corpus: str, limit: int = 1000, **_: Any) -> Any:
    """Return the data set of up to `limit` questions about the documents of the file `corpus`."""
    return _dataset(ask(read_texts(Path(corpus)), limit))


def ask(texts: Iterable[str], limit: int) -> list[dict[str, Any]]:
    """Return up to `limit` questions: which of four sentences of about one length follows a context.

    The same texts give the same questions. Raises ValueError for texts with fewer than four sentences.
    """
    pairs = [pair for text in texts for pair in _pairs(text)]
    by_length = sorted({sentence.strip() for _, sentence in pairs}, key=lambda sentence: (len(sentence), sentence))
    positions = {sentence: position for position, sentence in enumerate(by_length)}
    if len(by_length) < _CHOICES:
        raise ValueError(f"the corpus has {len(by_length)} different sentences, expected at least {_CHOICES}")
    generator = random.Random(0)
    test = []
    for context, sentence in sorted(generator.sample(pairs, min(limit, len(pairs)))):
        right = sentence.strip()
        start = max(min(positions[right] - _NEIGHBOURS // 2, len(by_length) - _NEIGHBOURS - 1), 0)
        others = [other for other in by_length[start : start + _NEIGHBOURS + 1] if other != right]
        choices = [right, *generator.sample(others, _CHOICES - 1)]
        generator.shuffle(choices)
        indent = sentence[: len(sentence) - len(sentence.lstrip())]
        answer = choices.index(right)
        test.append({"context": context, "choices": [indent + choice for choice in choices], "answer": answer})
    return test


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield each sentence of a fit length after the text before it. Blanks between the two belong to the sentence."""
    for match in _SENTENCE.finditer(text):
        context = text[max(match.start() - _CONTEXT, 0) : match.start()]
        if context.strip() and len(match[0].strip()) in _LENGTHS:
            yield context, match[0]


def read_texts(path: Path) -> Iterator[str]:
    """Yield the texts of a file of JSON lines."""
    data = path.open("rb")
    if path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True, closefd=True)
    with io.TextIOWrapper(data, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}
