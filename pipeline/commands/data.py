"""The commands that get data: download and decompress.

Stages are imported inside the functions, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.commands import downloads
from pipeline.commands.console import Command, Outcome, Settings, option_group
from pipeline.commands.options import (
    EXCLUDE,
    INCLUDE,
    NETWORK,
    network_of,
    refuse_options,
)

_NOT_OF_TOKENIZERS = ("shards", "include", "exclude", "update_lock", "decompress", "jobs", "allow_shrink")


@click.command(cls=Command, short_help="Download sources into the raw cache.")
@click.argument("references", metavar="SOURCE|URL|PATH...", nargs=-1)
@option_group(
    "Input",
    click.option("--list", "list_only", is_flag=True, help="List the public sources with their sizes and licences."),
    click.option(
        "--shards", default="", metavar="SHARDS", help="Shards of the Pile to fetch: e.g. 0-2,val,test, or all."
    ),
    INCLUDE,
    EXCLUDE,
    click.option(
        "--mirror",
        default="",
        metavar="URL|DIR",
        help="Fetch from this server or local clone instead of the source's own.",
    ),
    click.option(
        "--update-lock", is_flag=True, help="Check files that are already here too, and fetch those that changed."
    ),
)
@option_group(
    "Output",
    click.option("--decompress", is_flag=True, help="Also write decompressed copies to decompressed/."),
    click.option("--dry-run", is_flag=True, help="List the files to fetch and stop."),
)
@option_group(
    "Network",
    click.option(
        "--jobs",
        type=click.IntRange(1, 1024),
        metavar="N",
        default=2,
        show_default=True,
        help="Number of files to fetch in parallel.",
    ),
)
@NETWORK
def download(
    settings: Settings,
    references: tuple[str, ...],
    list_only: bool,
    shards: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    mirror: str,
    jobs: int,
    decompress: bool,
    dry_run: bool,
    update_lock: bool,
    allow_shrink: bool,
    **limits: Any,
) -> Outcome:
    """Download sources into the raw cache, and verify and pin every file.

    A source is a name that --list shows, such as shuihu or classics, hf:OWNER/NAME[@REVISION] for a dataset of the
    Hugging Face hub, a URL, or a local file or folder. An interrupted download resumes. tokenizer:NAME is one of
    tiktoken's encodings, kept for later use without a network.

    \b
    Examples:
      inkstone download pile --shards 0,val
      inkstone download hf:Salesforce/wikitext --include "wikitext-2-raw-v1/*"
    """
    if list_only:
        return downloads.list_outcome()
    if not references:
        raise click.UsageError("Missing argument 'SOURCE|URL|PATH...'.")
    from pipeline.sources import catalogue
    from pipeline.sources import download as download_stage

    network = network_of(settings, **limits)
    if any(reference.startswith(downloads.TOKENIZER) for reference in references):
        refuse_options("has no effect on the ranks of a tokenizer", *_NOT_OF_TOKENIZERS)
        return downloads.download_tokenizers(references, network, mirror, dry_run)
    sources = [
        catalogue.resolve_source(
            reference, shards=shards, mirror=mirror, include=include, exclude=exclude, leave_out=(settings.root,)
        )
        for reference in references
    ]
    left_out = downloads.report_left_out(settings, references, sources)
    if dry_run:
        return downloads.dry_run_outcome(settings, sources, network, left_out)
    results = [
        download_stage.download(
            settings.root,
            source,
            settings.progress,
            network=network,
            jobs=jobs,
            decompress_too=decompress,
            update=update_lock,
            allow_shrink=allow_shrink,
        )
        for source in sources
    ]
    return downloads.download_outcome(results, left_out)


@click.command(cls=Command)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Output folder (default: beside each file)."
)
def decompress(settings: Settings, paths: tuple[Path, ...], out: Path | None) -> Outcome:
    """Decompress .zst and .gz files.

    Each file is decompressed completely or not at all: a truncated or broken file leaves no output.
    """
    from pipeline.sources import decompress as decompress_stage

    written = decompress_stage.decompress(paths, out, settings.progress)
    counts = {"files": len(written), "bytes": sum(path.stat().st_size for path in written)}
    lines = [f"built: {path} ({path.stat().st_size:,} bytes)" for path in written]
    return Outcome("built", path=written[-1], counts=counts, lines=lines)
