"""`bench loss TRAIN.txt VAL.txt`: from two texts to a tokenizer, tokens and a model, and what that makes of the second.

The clock runs over training only. All of the validation text is scored, each token once with half a block before it
at least, and the bits are divided by its characters; a character that the tokenizer does not know costs, beside its
id, the choice among all of Unicode's.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.rows import Row
from model.presets import preset
from model.runs import plan, run
from model.training import metrics, stage
from pipeline import tokenizers
from pipeline.clean.report import sentencepiece_flags as advice
from pipeline.clean.report.sentencepiece_flags import Lines
from pipeline.runtime.progress import Silent
from pipeline.tokenizers import stage as train_tokenizer
from pipeline.tokens import stage as tokenize
from pipeline.tokens.stage import TokenizeOptions

_SENTENCE = re.compile("(?<=[。！？\n])")


def bench(
    train: Path,
    val: Path,
    minutes: float,
    preset_name: str,
    seed: int,
    report: Callable[[str], None],
    settings: Mapping[str, str] | None = None,
    tokenizer_name: str = "",
) -> list[Row]:
    """One row: bits per character of `val` after so many minutes (`ours`), beside those before training.

    `settings` override numbers of the preset; without a tokenizer's name it is the one that the preset was tuned with.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "artifacts"
        inputs = tokenize.gather(root, (str(train),), (str(val),))
        tokenizer, trained = tokenizers.find(
            root, _tokenizer(root, train, tokenizer_name or preset(preset_name).tokenizer or "char")
        )
        options = TokenizeOptions("memmap")
        tokens = tokenize.tokenize(root, "text", inputs, tokenizer, trained, options, Silent(), jobs=1).artifact
        chosen = {"seed": seed, "eval_bytes": 0, **(settings or {})}
        planned = plan.plan(tokens, preset_name, name="loss", minutes=minutes, settings=chosen)
        made = stage.train(root, planned, device="auto", resume=False, report=report).artifact
        result = run.read_result(made.path)
        rows = metrics.read(made.file("metrics.csv"))
    report(f"{result.steps:,} steps, {result.epochs:.1f} epochs, {result.tokens_per_second:,.0f} tokens/s")
    evaluated = [row for row in rows if row["bits_per_char"]]
    for row in evaluated:
        report(f"{float(row['seconds']):7.1f} s  {float(row['bits_per_char']):.3f} bits/char")
    work = f"{minutes:g} min of {preset_name}, seed {seed}"
    assert result.bits_per_char is not None
    return [Row(work, result.bits_per_char, float(evaluated[0]["bits_per_char"]), "before training", "bits/char")]


def _tokenizer(root: Path, text: Path, wanted: str) -> str:
    """Train the tokenizer that a preset was tuned with, on the training text alone; what it is called."""
    kind, _, size = wanted.partition("-")
    if kind not in train_tokenizer.KINDS:
        return wanted
    lines = root.parent / "sentences.txt"
    parts = _SENTENCE.split(text.read_text(encoding="utf-8"))
    whole = "".join(part if part.endswith("\n") else f"{part}\n" for part in parts)
    lines.write_text(whole, encoding="utf-8")
    sentences, made_from = train_tokenizer.sentences_of(root, str(lines))
    longest = max(len(part.encode()) for part in parts)
    flags = advice.flags(Lines(Counter(whole), whole.count("\n"), longest, 0))
    made = train_tokenizer.train(root, "text", sentences, made_from, kind, int(size or 0), flags)
    return made.artifact.ref
