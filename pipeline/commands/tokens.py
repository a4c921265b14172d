"""The tokens commands: train-tokenizer, tokenize and inspect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands.console import Choice, Command, Number, Outcome, Settings, Word, option_group
from pipeline.commands.options import (
    ENGINE,
    EXCLUDE,
    INCLUDE,
    JOBS,
    MAX_BAD,
    NAME,
    REBUILD,
    TEXT_FIELD,
    engine_of,
    find_artifact,
    name_of,
    outcome_of,
    refuse_options,
    worker_count,
)
from pipeline.runtime.terminal import counted

if TYPE_CHECKING:
    from pipeline.store.artifact import Artifact, BuildResult
    from pipeline.tokenizers import Tokenizer
    from pipeline.tokens.locate import TokensSummary
    from pipeline.tokens.stage import TokenizeInputs

_MIN_CHARACTERS_PER_TOKEN = 1.1  # of a tokenizer that fits; a character that it lacks takes a token for each byte


@click.command("train-tokenizer", cls=Command)
@click.argument("corpora", metavar="[CORPUS]...", nargs=-1)
@NAME
@click.option(
    "--kind",
    type=Choice(["bpe", "unigram", "char", "bbpe"]),
    default="bpe",
    show_default=True,
    help="Kind of tokenizer: BPE or unigram of SentencePiece; one id per character (char); or byte-level BPE as in "
    "GPT-2 and Qwen, written as a Hugging Face tokenizer.json (bbpe).",
)
@click.option(
    "--vocab-size",
    metavar="N|auto",
    default="auto",
    show_default=True,
    help="Number of token ids; auto takes the number that the report of the corpus advises, or the largest possible if "
    "the text is too small for it. For char, 0 and auto keep all characters.",
)
@REBUILD
def train_tokenizer(
    settings: Settings, corpora: tuple[str, ...], name: str, kind: str, vocab_size: str, rebuild: bool
) -> Outcome:
    """Train a tokenizer on corpora.

    Without CORPUS, the newest corpus is used. CORPUS may also be a text file with one sentence per line.

    \b
    Examples:
      inkstone train-tokenizer book
      inkstone train-tokenizer book --kind bbpe --vocab-size 8000
    """
    from pipeline.store.manifest import check_name
    from pipeline.tokenizers import stage

    corpora = corpora or (find_artifact(settings, "corpora", "").ref,)
    stage.check_options(kind, vocab_size)
    texts = stage.find_sentences(settings.root, corpora)
    own_name = name_of(corpora[0], "corpora")
    name = check_name(name or own_name)
    if advice := stage.size_warning(texts, kind, vocab_size):
        settings.progress.note(advice)
    built = stage.train(settings.root, name, texts, kind, vocab_size, progress=settings.progress, rebuild=rebuild)
    outcome = outcome_of(built, ("vocab_size",))
    inputs = " ".join(own_name if corpus.startswith("corpora/") else corpus for corpus in corpora)
    outcome.lines.append(f"next: inkstone tokenize {inputs}" + (f" --tokenizer {name}" if name != own_name else ""))
    return outcome


@click.command(cls=Command)
@click.argument("corpora", metavar="[CORPUS]...", nargs=-1)
@option_group(
    "Input",
    click.option(
        "--tokenizer",
        "reference",
        default="",
        metavar="NAME|FILE",
        help="Trained tokenizer, tiktoken encoding such as r50k_base, SentencePiece .model file, Hugging Face "
        "tokenizer.json or its folder, or a run (default: the tokenizer trained on CORPUS, or that of the same name, "
        "or the only one).",
    ),
    click.option(
        "--end-of-text",
        default="",
        metavar="TOKEN",
        help="Token of a tokenizer.json that ends a text (default: the eos_token of its tokenizer_config.json).",
    ),
    click.option(
        "--encoder",
        type=Choice(["auto", "gigatoken", "tiktoken"]),
        default="auto",
        show_default=True,
        help="Library that encodes a tiktoken encoding; auto uses gigatoken if installed.",
    ),
    TEXT_FIELD,
    click.option(
        "--deep", is_flag=True, help="Hash every byte of the inputs, even if size and modification time are unchanged."
    ),
    INCLUDE,
    EXCLUDE,
    MAX_BAD,
    click.option(
        "--allow-unknown",
        is_flag=True,
        help="Accept a text even if more than 5 % of its characters are not in the vocabulary.",
    ),
)
@option_group(
    "Validation split",
    click.option(
        "--val-fraction",
        type=Number(),
        metavar="FRACTION",
        help="Fraction of the text to hold out, chosen by hash; 0 holds out nothing (default: that of the previous "
        "generation, at first 0.05).",
    ),
    click.option(
        "--val-split",
        type=Choice(["auto", "document", "stretch"]),
        default="auto",
        show_default=True,
        help="Hold out whole documents, or stretches of 4 to 64 KiB; auto keeps the choice of the previous generation, "
        "and at first divides few or very long documents into stretches.",
    ),
    click.option("--val", multiple=True, metavar="CORPUS", help="Validate on this corpus instead (repeatable)."),
    click.option(
        "--allow-overlap", is_flag=True, help="Accept a --val corpus that is mostly in the training text too."
    ),
)
@option_group(
    "Document filters",
    click.option(
        "--include-set", "include_sets", multiple=True, metavar="SET", help="Keep only this set (repeatable)."
    ),
    click.option("--exclude-set", "exclude_sets", multiple=True, metavar="SET", help="Drop this set (repeatable)."),
    click.option(
        "--min-chars", type=click.IntRange(0), metavar="N", default=0, help="Drop documents with fewer characters."
    ),
    click.option(
        "--max-documents",
        type=click.IntRange(0),
        metavar="N",
        default=0,
        help="Stop after this many documents; 0 (default): all.",
    ),
    click.option(
        "--dedup",
        type=Choice(["no", "exact"]),
        default="no",
        show_default=True,
        help="Drop documents with the same text as an earlier one (exact).",
    ),
)
@option_group(
    "Output",
    NAME,
    click.option(
        "--format",
        type=Choice(["memmap", "hdf5", "both"]),
        default="memmap",
        show_default=True,
        help="Write memory-mapped .bin segments, one HDF5 file per split, or both.",
    ),
    REBUILD,
    JOBS,
    ENGINE,
)
def tokenize(
    settings: Settings,
    corpora: tuple[str, ...],
    reference: str,
    end_of_text: str,
    name: str,
    val: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    encoder: str,
    deep: bool,
    rebuild: bool,
    jobs: int,
    engine: str,
    **options: Any,
) -> Outcome:
    """Tokenize corpora into token arrays.

    CORPUS is a corpus, a downloaded source, a file or a folder; without one, the newest corpus is used. SET is a set
    name that documents carry as meta.pile_set_name, e.g. Pile-CC.

    \b
    Examples:
      inkstone tokenize book
      inkstone tokenize pile --tokenizer r50k_base --jobs 8
    """
    from pipeline import tokenizers
    from pipeline.sources.inputs import explain_exclude
    from pipeline.store.manifest import check_name
    from pipeline.tokens import stage
    from pipeline.tokens.options import TokenizeOptions

    corpora = corpora or (find_artifact(settings, "corpora", "").ref,)
    name = check_name(name or name_of(corpora[0], "corpora"))
    tokenize_options, open_engine = TokenizeOptions(**options), engine_of(engine, jobs)
    inputs = stage.gather_inputs(
        settings.root,
        corpora,
        val,
        progress=settings.progress,
        include=include,
        exclude=exclude,
        text_fields=tokenize_options.text_fields,
        deep=deep,
        allow_overlap=tokenize_options.allow_overlap,
    )
    reference = reference or _choose_tokenizer(settings, corpora, name)
    tokenizer, trained = tokenizers.find(settings.root, reference, encoder, end_of_text)
    with explain_exclude([file.path for file in (*inputs.train, *inputs.val)], (*corpora, *val)):
        built = stage.tokenize(
            *(settings.root, name, inputs, tokenizer, trained, tokenize_options, settings.progress),
            jobs=worker_count(jobs),
            rebuild=rebuild,
            open_engine=open_engine,
        )
    return _tokenize_outcome(built, inputs, tokenizer)


def _choose_tokenizer(settings: Settings, corpora: Sequence[str], name: str) -> str:
    """Return the tokenizer for these corpora, and report the choice unless it is obvious."""
    from pipeline import tokenizers
    from pipeline.store import remote

    remote.fetch_all(settings.root, "tokenizers")
    texts = [name_of(corpus, "corpora") for corpus in corpora]
    chosen, reason = tokenizers.choose(settings.root, texts, name)
    if reason:
        settings.progress.note(f"using {chosen.ref}, {reason}")
    return chosen.ref


def _tokenize_outcome(built: BuildResult, inputs: TokenizeInputs, tokenizer: Tokenizer) -> Outcome:
    from pipeline.sources.walk import as_records
    from pipeline.tokens.split import summary

    manifest = built.artifact.manifest
    fields = ("tokens", "documents", "input_bytes", "dtype", "tokenizer", "encoder", "compared", "sets")
    extra = {key: manifest.counts[key] for key in fields} | {"left_out": as_records(inputs.left_out)}
    outcome = outcome_of(built, ("documents", "train_tokens", "val_tokens"), **extra)
    outcome.extra["characters_per_token"] = round(_characters_per_token(manifest.counts), 3)
    outcome.lines.append(summary(manifest.options, manifest.counts))
    if kind := manifest.options.get("chat"):
        task = "dpo" if kind == "preferences" else "sft"
        outcome.lines.append(f"next: inkstone train --tokens {manifest.name} --from RUN --task {task}")
    else:
        outcome.lines += _fit_warning(tokenizer, outcome.extra["characters_per_token"])
        outcome.lines.append(f"next: inkstone train --tokens {manifest.name}")
    return outcome


def _characters_per_token(counts: Mapping[str, int]) -> float:
    """Return the characters that a token has on average, without those tokens that end a text."""
    characters, tokens, texts = (
        counts[f"train_{unit}"] + counts[f"val_{unit}"] for unit in ("characters", "tokens", "documents")
    )
    return characters / max(tokens - texts, 1)


def _fit_warning(tokenizer: Tokenizer, characters_per_token: float) -> list[str]:
    """Return a warning if a tokenizer of pieces encodes the text as single characters and bytes."""
    from pipeline.tokenizers import Characters

    if tokenizer.kind == Characters.kind or characters_per_token >= _MIN_CHARACTERS_PER_TOKEN:
        return []
    return [
        f"warning: {characters_per_token:.2f} characters per token: {tokenizer.name or 'the tokenizer'} does not fit "
        "this text; `train-tokenizer` trains one that does"
    ]


@click.command(cls=Command)
@click.argument("kind", metavar="tokens", type=Word("tokens", "text files: `clean FILE --dry-run`"))
@click.argument("reference", metavar="[NAME]", default="")
@click.option("--locate", "index", type=int, metavar="INDEX", help="Print the source of the token at this index.")
@click.option(
    "--split",
    type=click.Choice(["train", "val"]),
    default="train",
    show_default=True,
    help="Split that --locate counts in.",
)
def inspect(settings: Settings, kind: str, reference: str, index: int | None, split: str) -> Outcome:
    """Summarize token arrays or locate a token.

    With --locate INDEX, print the file, line and byte that the token came from, with its context. Without NAME, the
    newest token arrays are used.

    \b
    Example:
      inkstone inspect tokens book --locate 5000
    """
    from pipeline.tokens import locate

    tokens = find_artifact(settings, kind, reference)
    if index is not None:
        with settings.progress.wait("reading the source of the token"):
            location = locate.locate(tokens, index, split)
        lines = [
            f"{split} token {location.index:,}: {location.token!r}, number {location.place:,} of document "
            f"{location.document:,}",
            f"source    {location.source}, line {location.line:,}, byte {location.offset:,} of its text",
            *([f"piece     begins after {location.skipped:,} characters of the document"] if location.skipped else []),
            f"file      {location.path}",
            *([f"title     {location.title}"] if location.title else []),
            f"text      {location.before!r}",
            f"        → {location.after!r}",
        ]
        return Outcome(
            "unchanged", tokens.ref, tokens.path, extra={"location": asdict(location)}, lines=lines, always=True
        )
    refuse_options("has no effect without --locate", "split")
    summary = locate.summarize(tokens)
    return Outcome(
        "unchanged",
        tokens.ref,
        tokens.path,
        summary.counts,
        tokens.manifest.ledger,
        {
            "longest": summary.longest,
            "lengths": summary.lengths,
            "segments": summary.segments,
            "first_document": summary.first,
        },
        _summary_lines(tokens, summary),
        always=True,
    )


def _summary_lines(tokens: Artifact, summary: TokensSummary) -> list[str]:
    from pipeline.tokens.totals import describe_unknown

    counts = summary.counts
    lines = [
        tokens.ref,
        f"tokenizer  {counts.get('tokenizer', tokens.manifest.tokenizer)}: {counts['vocab_size']:,} ids, "
        f"end of text {counts['end_of_text']}, stored as {counts['dtype']}",
        *(
            f"{split:<10} {counts[f'{split}_tokens']:,} tokens in "
            f"{counted(counts[f'{split}_documents'], 'documents')}, {counted(summary.segments[split], 'segments')}"
            for split in summary.segments
        ),
        *(
            f"mask       {counts[name]:,} of {counts[f'{split}_tokens']:,} {split} tokens have a loss"
            for split in summary.segments
            if (name := f"{split}_loss_tokens") in counts
        ),
        f"longest    {counted(summary.longest, 'tokens')}",
        *_length_lines(summary.lengths),
        *([f"unknown    {describe_unknown(counts)}"] if "unknown_characters" in counts else []),
    ]
    if "encoder" in counts:
        lines.append(f"encoder    {counts['encoder']}, {counted(counts['compared'], 'documents')} compared")
    for index, (name, documents) in enumerate(sorted(counts.get("sets", {}).items(), key=lambda item: -item[1])):
        lines.append(f"{'' if index else 'sets':<10} {documents:>12,} {name}")
    return [*lines, f"begins     {summary.first!r}"]


def _length_lines(lengths: Sequence[int]) -> list[str]:
    """Return a histogram of the lengths of documents: a line for each power of two from the shortest on."""
    from pipeline.runtime.terminal import bars, drawable

    dash = drawable("–", "-")
    first = next((power for power, count in enumerate(lengths) if count), 0)
    ranges = [f"{1 << power:,}{dash}{(2 << power) - 1:,}" if power else "1" for power in range(len(lengths))]
    width = max(map(len, ranges), default=0)
    return [
        f"{'' if power > first else 'lengths':<10} {ranges[power]:>{width}} {bar} {lengths[power]:,}"
        for power, bar in enumerate(bars(lengths))
        if power >= first
    ]
