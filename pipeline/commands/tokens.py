"""The train-tokenizer, tokenize, inspect and export tokens commands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import errors
from pipeline.commands.console import Command, Outcome, Settings
from pipeline.commands.options import JOBS, MAX_BAD, NAME, _stem, newest, outcome_of, processes

if TYPE_CHECKING:
    from pipeline.store.artifact import Artifact
    from pipeline.tokens.locate import Facts


@click.command("train-tokenizer", cls=Command)
@click.argument("corpus", metavar="[CORPUS]", default="")
@NAME
@click.option("--kind", default="bpe", show_default=True, help="bpe, unigram (SentencePiece) or char.")
@click.option(
    "--vocab-size", type=click.IntRange(0), default=8000, show_default=True, help="Number of ids; char: 0 for all."
)
def train_tokenizer(settings: Settings, corpus: str, name: str, kind: str, vocab_size: int) -> Outcome:
    """Train a tokenizer on a corpus (the newest one if none is named)."""
    from pipeline.store.manifest import check_name
    from pipeline.tokenizers import stage

    corpus = corpus or newest(settings, "corpora").ref
    sentences, made_from = stage.sentences_of(settings.root, corpus)
    name = name or _stem(corpus, "corpora")
    source = click.get_current_context().get_parameter_source("vocab_size")
    if kind == "char" and source == click.core.ParameterSource.DEFAULT:
        vocab_size = 0
    check_name(name)
    if said := stage.advice(sentences, made_from, kind, vocab_size):
        settings.progress.note(said)
    return outcome_of(stage.train(settings.root, name, sentences, made_from, kind, vocab_size), ("vocab_size",))


@click.command(cls=Command)
@click.argument("corpora", metavar="[CORPUS]...", nargs=-1)
@click.option("--tokenizer", "reference", default="", help="A trained one, a .model file, r50k_base, cl100k_base, ...")
@NAME
@click.option("--format", "layout", default="memmap", show_default=True, help="memmap, hdf5 or both.")
@click.option("--val-fraction", type=float, help="Share of documents held out, by a hash of their text (default 0.05).")
@click.option("--val", multiple=True, metavar="CORPUS", help="Validate on this corpus instead (repeatable).")
@click.option("--include-set", "include_sets", multiple=True, metavar="SET", help="Keep only this set (repeatable).")
@click.option("--exclude-set", "exclude_sets", multiple=True, metavar="SET", help="Leave this set out (repeatable).")
@click.option("--min-chars", type=click.IntRange(0), default=0, help="Shorter documents are dropped.")
@click.option("--max-documents", type=click.IntRange(0), default=0, help="Stop after so many; 0 (default): all.")
@click.option("--dedup", default="no", show_default=True, help="exact: of equal texts the first stays.")
@click.option("--encoder", default="auto", show_default=True, help="Of a tiktoken encoding: gigatoken or tiktoken.")
@click.option("--deep", is_flag=True, help="Hash every byte of the inputs, also where size and time are as before.")
@MAX_BAD
@JOBS
def tokenize(
    settings: Settings,
    corpora: tuple[str, ...],
    reference: str,
    name: str,
    layout: str,
    val: tuple[str, ...],
    encoder: str,
    deep: bool,
    jobs: int,
    **options: Any,
) -> Outcome:
    """Turn corpora, downloaded sources or files into token arrays (the newest corpus if none is named).

    SET is a name that documents carry as meta.pile_set_name, as `Pile-CC`.
    """
    from pipeline import tokenizers
    from pipeline.store import artifact
    from pipeline.store.manifest import check_name
    from pipeline.tokens import stage

    corpora = corpora or (newest(settings, "corpora").ref,)
    name = check_name(name or _stem(corpora[0], "corpora"))
    inputs = stage.gather(settings.root, corpora, val, deep=deep)
    if not reference:
        same = artifact.current(settings.root, "tokenizers", name)
        reference = (same or newest(settings, "tokenizers")).ref
    tokenizer, trained = tokenizers.find(settings.root, reference, encoder)
    chosen = stage.TokenizeOptions(layout, **options)
    jobs = processes(jobs)
    built = stage.tokenize(settings.root, name, inputs, tokenizer, trained, chosen, settings.progress, jobs=jobs)
    counts = built.artifact.manifest.counts
    shown = ("tokens", "documents", "input_bytes", "dtype", "tokenizer", "encoder", "compared", "sets")
    extra = {key: counts[key] for key in shown}
    return outcome_of(built, ("documents", "train_tokens", "val_tokens"), **extra)


@click.command(cls=Command)
@click.argument("kind", metavar="tokens", type=click.Choice(["tokens"]))
@click.argument("reference", metavar="[NAME]", default="")
@click.option("--locate", "index", type=int, metavar="INDEX", help="Say where this token came from.")
@click.option("--split", type=click.Choice(["train", "val"]), default="train", show_default=True, help="Of --locate.")
def inspect(settings: Settings, kind: str, reference: str, index: int | None, split: str) -> Outcome:
    """Show what token arrays hold, or which line of which file a token came from (the newest if none is named)."""
    from pipeline.store import artifact
    from pipeline.tokens import locate as inspection

    found = artifact.find(settings.root, kind, reference) if reference else newest(settings, kind)
    if index is not None:
        place = inspection.locate(found, index, split)
        lines = [
            f"{split} token {place.index:,}: {place.token!r}, number {place.place:,} of document {place.document:,}",
            f"source    {place.source}, line {place.line:,}, byte {place.offset:,} of its text",
            f"file      {place.path}",
            *([f"title     {place.title}"] if place.title else []),
            f"text      {place.before!r}",
            f"        → {place.after!r}",
        ]
        return Outcome("unchanged", found.ref, found.path, extra={"location": asdict(place)}, lines=lines, always=True)
    facts = inspection.describe(found)
    return Outcome(
        "unchanged",
        found.ref,
        found.path,
        facts.counts,
        found.manifest.ledger,
        {"longest": facts.longest, "segments": facts.segments, "first_document": facts.first},
        _facts(found, facts),
        always=True,
    )


def _facts(found: Artifact, facts: Facts) -> list[str]:
    counts = facts.counts
    lines = [
        found.ref,
        f"tokenizer  {counts.get('tokenizer', found.manifest.tokenizer)}: {counts['vocab_size']:,} ids, "
        f"end of text {counts['end_of_text']}, stored as {counts['dtype']}",
        *(
            f"{split:<10} {counts[f'{split}_tokens']:,} tokens in {counts[f'{split}_documents']:,} documents, "
            f"{facts.segments[split]} segments"
            for split in facts.segments
        ),
        f"longest    {facts.longest:,} tokens",
    ]
    if "encoder" in counts:
        lines.append(f"encoder    {counts['encoder']}, {counts['compared']:,} documents compared")
    for number, (name, documents) in enumerate(sorted(counts.get("sets", {}).items(), key=lambda row: -row[1])):
        lines.append(f"{'' if number else 'sets':<10} {documents:>12,} {name}")
    return [*lines, f"begins     {facts.first!r}"]


def export_tokens(settings: Settings, reference: str, layout: str, out: Path | None, verify: bool) -> Outcome:
    """What `export tokens` does."""
    from pipeline.export import export as formats
    from pipeline.store import artifact

    if not layout:
        raise errors.BadConfig("no format to export to", hint=f"--to {', '.join(formats.FORMATS)}")
    found = artifact.find(settings.root, "tokens", reference) if reference else newest(settings, "tokens")
    target = out or settings.root / "exports" / f"{found.manifest.name}-{layout}"
    done = formats.export(found, layout, target, verify=verify)
    checked = ", read back and equal" if done.verified else ""
    counts = {"tokens": done.tokens, "documents": done.documents, "bytes": done.bytes, "linked": done.linked}
    return Outcome(
        "built",
        found.ref,
        done.path,
        counts,
        extra={"format": done.format, "files": list(done.files), "verified": done.verified},
        lines=[f"built: {done.path} ({done.tokens:,} tokens as {done.format}{checked})"],
    )
