"""`bench loss TRAIN... VAL`: train a tokenizer and a model on texts and score the model on another text.

Only training is timed. The complete validation text is scored, each token once and with at least half a block of
context, and the bits are divided by the number of characters. An unknown character costs its token and, in addition,
a uniform choice among all Unicode characters. The preset "plain-loop" is a peer: the network and the recipe that
nanoGPT's README gives for a CPU, in a loop like its train.py.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.rows import Row
from benchmarks.train import PlainLoop
from model.config import GPTConfig, TrainConfig
from model.network.gpt import GPT
from model.presets import get_preset
from model.runs import checkpoint, plan, run
from model.runs.plan import TrainPlan
from model.training import metrics, stage
from model.training.dataloader import Sampler
from model.training.evaluate import Evaluation, evaluate, validation_set
from pipeline import tokenizers
from pipeline.clean.report import sentencepiece_flags
from pipeline.clean.report.sentencepiece_flags import LineStats
from pipeline.runtime.progress import SilentProgress
from pipeline.store.artifact import Artifact
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.store import TokenStore, open_store

PLAIN_LOOP = "plain-loop"
_SENTENCE = re.compile("(?<=[。！？\n])")


def bench(
    train: Sequence[Path],
    val: Path,
    minutes: float,
    preset_name: str,
    seed: int,
    report: Callable[[str], None],
    settings: Mapping[str, str] | None = None,
    tokenizer_name: str = "",
) -> list[Row]:
    """Return one row: bits per character of `val` at the end of `minutes` of training (`ours`) and before it (`peer`).

    The preset "auto" is the one that `start` would choose for the text and the minutes. `settings` override values of
    the preset. The default tokenizer is the one that the preset was tuned with, or BPE of the size that suits the text.
    """
    work = f"{minutes:g} min of {preset_name}, seed {seed}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "artifacts"
        inputs = tokens_stage.gather_inputs(root, tuple(map(str, train)), (str(val),))
        tuned = "bpe" if preset_name in (plan.AUTO, PLAIN_LOOP) else get_preset(preset_name).tokenizer
        reference = _tokenizer(root, train, tokenizer_name or tuned or "char")
        tokenizer, tokenizer_artifact = tokenizers.find(root, reference)
        options = TokenizeOptions("memmap")
        encoded = tokens_stage.tokenize(
            root, "text", inputs, tokenizer, tokenizer_artifact, options, SilentProgress(), jobs=1
        )
        store = open_store(encoded.artifact)
        if preset_name == PLAIN_LOOP:
            first, last = _train_plain_loop(store, minutes, seed, int((settings or {}).get("eval_bytes", 0)), report)
            report(f"bits/byte: {last.bits_per_byte:.3f}")
            return [_row(work, last.bits_per_char, first.bits_per_char)]
        overrides = {"seed": seed, "eval_bytes": 0, **(settings or {})}
        planned = _plan(root, encoded.artifact, preset_name, minutes, overrides, report)
        artifact = stage.train(root, planned, device="auto", resume=False, report=report).artifact
        result = run.read_result(artifact.path)
        rows = metrics.read(artifact.file("metrics.csv"))
        if planned.preset.model.ngram:
            _report_network(artifact, store, report)
    report(f"{result.steps:,} steps, {result.epochs:.1f} epochs, {result.tokens_per_second:,.0f} tokens/s")
    report(f"bits/char: best {result.best_bits_per_char:.3f}, last {result.bits_per_char:.3f}")
    report(f"bits/byte: {result.bits_per_byte:.3f}")
    if result.ended_early:
        report(f"ended early: {result.ended_early}")
    evaluated = [row for row in rows if row["bits_per_char"]]
    for row in evaluated:
        report(f"{float(row['seconds']):7.1f} s  {float(row['bits_per_char']):.3f} bits/char")
    assert result.bits_per_char is not None
    return [_row(work, result.bits_per_char, float(evaluated[0]["bits_per_char"]))]


def _row(work: str, last: float, first: float) -> Row:
    return Row(work, last, first, "before training", "bits/char")


def _train_plain_loop(
    store: TokenStore, minutes: float, seed: int, eval_bytes: int, report: Callable[[str], None]
) -> tuple[Evaluation, Evaluation]:
    """Train as nanoGPT's README says for a CPU: train_shakespeare_char with 4 layers of 128 and 12 blocks of 64.

    The rate falls with the clock instead of the iterations, so that it reaches its end within `minutes`. The
    vocabulary is rounded up to a multiple of 64, as nanoGPT does for GPT-2. Returns the evaluations before and
    after the training.
    """
    rounded = -(-store.tokenizer.vocab_size // 64) * 64
    model = GPTConfig(vocab_size=rounded, block_size=64, layers=4, heads=4, width=128, bias=False)
    config = TrainConfig(batch_size=12, minutes=minutes, learning_rate=1e-3, beta2=0.99, warmup=100, seed=seed)
    device = torch.device("cpu")
    loop = PlainLoop(model, config, Sampler(store.train, model.block_size, seed, "random", "bench"), device)
    first = _score(loop.network, store, eval_bytes)
    steps = loop.run()
    report(f"{steps:,} steps, {steps * config.batch_size * model.block_size / (60 * minutes):,.0f} tokens/s")
    return first, _score(loop.network, store, eval_bytes)


def _score(network: GPT, store: TokenStore, eval_bytes: int = 0) -> Evaluation:
    evaluation = evaluate(network, validation_set(store, eval_bytes), torch.device("cpu"))
    assert evaluation is not None
    return evaluation


def _report_network(trained: Artifact, store: TokenStore, report: Callable[[str], None]) -> None:
    """Report the bits per character of the network without the n-grams that it is mixed with."""
    network = checkpoint.load_network(run.checkpoint_path(trained, "best"), torch.device("cpu"))
    report(f"bits/char of the network alone: {_score(network, store).bits_per_char:.3f}")


def _plan(
    root: Path,
    tokens: Artifact,
    preset_name: str,
    minutes: float,
    overrides: Mapping[str, object],
    report: Callable[[str], None],
) -> TrainPlan:
    if preset_name != plan.AUTO:
        return plan.make_plan(tokens, preset_name, name="loss", minutes=minutes, settings=overrides)
    planned, resolved = plan.make_auto_plan(root, tokens, "loss", minutes=minutes, settings=overrides)
    report(f"preset {resolved}")
    return planned


def _tokenizer(root: Path, files: Sequence[Path], name: str) -> str:
    """Return a reference to the tokenizer `name`. One that must be trained is trained on the training text alone."""
    kind, _, size = name.partition("-")
    if kind not in tokenizers_stage.KINDS:
        return name
    path = root.parent / "sentences.txt"
    sentences = _SENTENCE.split("".join(text.read_text(encoding="utf-8") for text in files))
    lines = "".join(sentence if sentence.endswith("\n") else f"{sentence}\n" for sentence in sentences)
    path.write_text(lines, encoding="utf-8")
    texts = tokenizers_stage.find_sentences(root, [str(path)])
    longest = max(len(sentence.encode()) for sentence in sentences)
    flags = sentencepiece_flags.flags(LineStats(Counter(lines), lines.count("\n"), longest, 0))
    default = 0 if kind == "char" else flags.vocab_size
    trained = tokenizers_stage.train(root, "text", texts, kind, int(size or default), flags)
    return trained.artifact.ref
