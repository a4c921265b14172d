"""The commands of the data's stages: download, decompress, clean, train-tokenizer, tokenize, inspect.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import errors
from pipeline.commands.console import Command, Outcome, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.sources.http import Network
    from pipeline.store.artifact import Artifact, Built
    from pipeline.tokens.locate import Facts


def processes(jobs: int) -> int:
    """What --jobs means."""
    from pipeline.runtime import workers as engines

    return jobs or engines.default_jobs()


JOBS = click.option("--jobs", type=click.IntRange(0), default=0, help="Processes that work; 0 (default): one a core.")
NAME = click.option("--name", default="", help="Name of the artifact that is made.")
MAX_BAD = click.option(
    "--max-bad", type=float, default=0.001, show_default=True, help="Share of bad documents allowed."
)


def NETWORK(command: Callable[..., Outcome]) -> Callable[..., Outcome]:  # noqa: N802 - as the options beside it
    """The options of commands that fetch."""
    for option in (
        click.option("--limit-rate", default="", metavar="BYTES", help="Bytes a second for all files, as 500k or 5M."),
        click.option(
            "--deadline", type=float, default=0.0, metavar="SECONDS", help="Fetch no longer than that; exit 75."
        ),
        click.option("--allow-host", "allow_hosts", multiple=True, metavar="HOST", help="Redirects may lead there."),
        click.option("--allow-shrink", is_flag=True, help="Take files that became smaller upstream."),
    ):
        command = option(command)
    return command


def network_of(settings: Settings, limit_rate: str, deadline: float, allow_hosts: tuple[str, ...]) -> Network:
    from pipeline.sources.http import Bandwidth, Network

    rate = _bytes(limit_rate, "--limit-rate") if limit_rate else 0.0
    until = time.monotonic() + deadline if deadline > 0 else None
    return Network(allow_hosts, Bandwidth(rate) if rate else None, until, settings.progress.stop)


def _bytes(text: str, option: str) -> float:
    """A number of bytes as curl and wget take it: 500k, 5M, 1.5G."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)(?:i?[bB])?", text.strip())
    if not found or not float(found[1]):
        raise errors.BadConfig(f"{option} {text}: no number of bytes", hint="for example 500k or 5M")
    return float(found[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[found[2].lower()]


@click.command(cls=Command)
@click.argument("references", metavar="SOURCE|URL|PATH...", nargs=-1, required=True)
@click.option("--shards", default="", help="Of the Pile: 0-2,val,test or all.")
@click.option("--mirror", default="", metavar="URL", help="Server to use in place of the source's own.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Files fetched at the same time.")
@click.option("--decompress", is_flag=True, help="Also leave them decompressed, below decompressed/.")
@click.option("--dry-run", is_flag=True, help="Only show what would be fetched.")
@click.option("--update-lock", is_flag=True, help="Ask about files that are there too, and take those that changed.")
@NETWORK
def download(
    settings: Settings,
    references: tuple[str, ...],
    shards: str,
    mirror: str,
    jobs: int,
    decompress: bool,
    dry_run: bool,
    update_lock: bool,
    allow_shrink: bool,
    **limits: Any,
) -> Outcome:
    """Fetch a source into the verified raw cache.

    Sources: sample, pile, shuihu, song-ci; or a URL; or a file or folder of this machine.
    """
    from pipeline.sources import catalogue as sources
    from pipeline.sources import download as stage

    chosen = [sources.resolve(reference, shards=shards, mirror=mirror) for reference in references]
    names = [source.name for source in chosen]
    if twice := {name for name in names if names.count(name) > 1}:
        raise errors.BadConfig(
            f"two of these would become raw/{min(twice)}", hint="rename one, or put both in a folder"
        )
    if dry_run:
        rows = [row for source in chosen for row in stage.plan(settings.root, source)]
        lines = [f"{'there' if there else 'fetch':<6} {name:<28} {origin}" for name, origin, there in rows]
        listed = [{"name": name, "origin": origin, "there": there} for name, origin, there in rows]
        return Outcome("unchanged", extra={"files": listed}, lines=lines)
    network = network_of(settings, **limits)
    done = [
        stage.download(
            settings.root,
            source,
            settings.progress,
            network=network,
            jobs=jobs,
            decompress_too=decompress,
            update=update_lock,
            allow_shrink=allow_shrink,
        )
        for source in chosen
    ]
    counts = {
        "files": sum(len(each.names) for each in done),
        "fetched": sum(each.fetched for each in done),
        "unchanged": sum(each.unchanged for each in done),
        "bytes": sum(each.bytes for each in done),
    }
    result = "built" if counts["fetched"] else "unchanged"
    lines = [f"{each.result}: {each.fetched} fetched, {each.unchanged} there already, {each.path}" for each in done]
    last = done[-1]
    return Outcome(result, f"raw/{last.source}", last.path, counts, lines=lines)


@click.command(cls=Command)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the results; else beside.")
def decompress(settings: Settings, paths: tuple[Path, ...], out: Path | None) -> Outcome:
    """Decompress .zst and .gz files, each to its very end or not at all."""
    from pipeline.sources import decompress as stage

    written = stage.decompress(paths, out, settings.progress)
    counts = {"files": len(written), "bytes": sum(path.stat().st_size for path in written)}
    lines = [f"built: {path} ({path.stat().st_size:,} bytes)" for path in written]
    return Outcome("built", path=written[-1], counts=counts, lines=lines)


@click.command(cls=Command)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@NAME
@click.option(
    "--profile",
    default="auto",
    show_default=True,
    help="plain, chinese-poetry, kanripo, daizhige, wikitext-lite, org, pile; auto: by file name and header.",
)
@click.option(
    "--unit", default="chapter", show_default=True, help="A document is a chapter, paragraph, sentence or document."
)
@click.option("--encoding", default="auto", show_default=True, help="Of plain text files.")
@click.option("--preset", default="", help="moirai: a sentence a line, without quotes, and nothing lost.")
@click.option("--headings", default="boundary", show_default=True, help="boundary, drop or keep.")
@click.option("--unwrap/--no-unwrap", default=None, help="Join hard-wrapped lines (default: by the profile).")
@click.option("--notes", multiple=True, metavar="BRACKETS=POLICY", help="As （）=drop, 【】=keep (repeatable).")
@click.option("--gaiji", default="lacuna", show_default=True, help="Unencoded characters: lacuna (□), keep or drop.")
@click.option("--gaiji-map", default="", metavar="FILE", help="What {上休下鳥}, &KR0869; and their like stand for.")
@click.option("--pua-map", default="", metavar="FILE", help="What private-use characters stand for.")
@click.option("--lacunae", default="keep", show_default=True, help="□: keep, collapse, or drop-unit.")
@click.option("--boilerplate", multiple=True, metavar="REGEX", help="What is to go; chapter-ends: 且听下回分解.")
@click.option("--quotes", default="keep", show_default=True, help="keep, curly, corner or strip.")
@click.option("--script", default="keep", show_default=True, help="keep, simplified or traditional (OpenCC).")
@click.option("--variants", default="", metavar="FILE", help="Table of variant characters, as 爲 → 為.")
@click.option("--punct", default="keep", show_default=True, help="keep, strip, or only:MARKS as only:。，！？")
@click.option("--verse", default="inline", show_default=True, help="inline, own-unit or drop.")
@click.option("--split", default="quoted", show_default=True, help="quoted: not inside quotes; flat: at every end.")
@click.option("--without", multiple=True, metavar="RULE", help="Switch a rule off (repeatable).")
@click.option("--min-chars", type=int, default=1, show_default=True, help="Shorter documents are dropped.")
@click.option("--max-bytes", type=int, default=4192, show_default=True, help="Of a line of sentences.txt.")
@click.option("--min-han", type=float, default=0.5, show_default=True, help="Least share of Han in a document.")
@click.option("--dedup", default="no", show_default=True, help="exact: of equal documents the first stays; near.")
@click.option("--dry-run", is_flag=True, help="Only show the report.")
@click.option("--explain", default="", metavar="RULE", help="Only show ten places that a rule changes.")
@MAX_BAD
@JOBS
def clean(
    settings: Settings,
    inputs: tuple[str, ...],
    name: str,
    dry_run: bool,
    explain: str,
    jobs: int,
    **options: Any,
) -> Outcome:
    """Clean downloaded sources, files or folders into a corpus, and report what was done to them."""
    from pipeline.clean import stage as corpus
    from pipeline.clean.options import CleanOptions
    from pipeline.clean.report import render as summary
    from pipeline.sources import inputs as raw
    from pipeline.store.manifest import check_name, name_from

    chosen = CleanOptions(**options)
    files = [file for reference in inputs for file in raw.inputs(settings.root, reference, corpora=False)]
    if explain:
        samples = corpus.explain(files, chosen, explain)
        lines = [line for before, after in samples for line in (f"- {before}", f"+ {after}", "")]
        told = [{"before": before, "after": after} for before, after in samples]
        nothing = [f"{explain} changes nothing here"]
        return Outcome("unchanged", extra={"samples": told}, lines=lines or nothing, always=True)
    jobs = processes(jobs)
    if dry_run:
        found = corpus.survey(files, chosen, settings.progress, jobs=jobs)
        return Outcome("unchanged", extra={"report": summary.to_json(found)}, lines=summary.table(found), always=True)
    name = check_name(name) if name else name_from(inputs[0])
    built = corpus.clean(settings.root, name, files, chosen, settings.progress, jobs=jobs)
    outcome = outcome_of(built, ("documents", "characters", "headings"))
    outcome.lines = [outcome.lines[0], *corpus.table(built.artifact)]
    return outcome


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


def outcome_of(built: Built, shown: tuple[str, ...], **extra: Any) -> Outcome:
    found = built.artifact
    counts = found.manifest.counts
    summary = ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in shown if name in counts)
    lines = [f"{built.result}: {found.ref} ({summary})"]
    for what, tally in found.manifest.ledger.items():
        if tally["dropped"]:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally["dropped"].items())
            lines.append(f"dropped {what}: {reasons}")
    return Outcome(built.result, found.ref, found.path, counts, found.manifest.ledger, dict(extra), lines)


def newest(settings: Settings, kind: str, besides: str = "") -> Artifact:
    from pipeline.store import artifact

    found = artifact.latest(settings.root, kind, besides=besides)
    settings.progress.note(f"using {found.ref}, the newest")
    return found


def _stem(reference: str, kind: str) -> str:
    """The name that an artifact passes on to what is made from it: `corpora/shuihu/<key>` → shuihu."""
    from pipeline.store.manifest import is_name, name_from

    parts = reference.removeprefix(f"{kind}/").split("/")
    return parts[0] if is_name(parts[0]) else name_from(reference)


COMMANDS = (download, decompress, clean, train_tokenizer, tokenize, inspect)
