"""The commands of the data's stages: download, decompress, clean, train-tokenizer, tokenize, inspect.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline import errors
from pipeline.commands.console import Command, Outcome, Settings
from pipeline.commands.options import JOBS, MAX_BAD, NAME, NETWORK, network_of, outcome_of, processes

if TYPE_CHECKING:
    pass


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
