"""Outcomes of the command `download`: of sources, of a dry run, and of the ranks of tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import humanize
import msgspec

from pipeline import errors
from pipeline.commands.console import Outcome, Settings
from pipeline.runtime.terminal import counted

if TYPE_CHECKING:
    from pipeline.sources.catalogue import Source
    from pipeline.sources.download import DownloadResult
    from pipeline.sources.http import Network

TOKENIZER = "tokenizer:"


def download_tokenizers(references: Sequence[str], network: Network, mirror: str, dry_run: bool) -> Outcome:
    """Fetch the ranks of encodings into the cache where later runs look for them."""
    from pipeline.tokenizers import ranks

    if others := [reference for reference in references if not reference.startswith(TOKENIZER)]:
        raise errors.BadConfig(
            f"{references[0]}: tokenizers and other sources in one command",
            hint=f"run `download {others[0]}` by itself",
        )
    encodings = [reference.removeprefix(TOKENIZER) for reference in references]
    if dry_run:
        origins = [ranks.ranks_file(encoding).url for encoding in encodings]
        return Outcome("unchanged", lines=[f"fetch  {origin}" for origin in origins], extra={"files": origins})
    fetched = [ranks.download(encoding, network, mirror) for encoding in encodings]
    lines = [
        f"{'built' if is_new else 'unchanged'}: the ranks of {encoding}, {path}"
        for encoding, (path, is_new) in zip(encodings, fetched, strict=True)
    ]
    count = sum(is_new for _, is_new in fetched)
    counts = {"files": len(fetched), "fetched": count, "unchanged": len(fetched) - count}
    return Outcome("built" if count else "unchanged", path=fetched[-1][0], counts=counts, lines=lines)


def list_outcome() -> Outcome:
    """Return the table of public sources."""
    from pipeline.sources.catalogue import CATALOGUE

    lines, records = [], []
    width = max(len(entry.licence) for entry in CATALOGUE.values())
    for name, entry in CATALOGUE.items():
        size = humanize.naturalsize(entry.bytes, format="%.0f")
        lines.append(f"{name:<20} {size:>7}  {entry.licence:<{width}}  {entry.what}")
        if entry.left_out:
            lines.append(f"{'':<30} left out: {entry.left_out}")
        records.append({"name": name, **msgspec.structs.asdict(entry), "files": entry.paths()})
    return Outcome("unchanged", extra={"sources": records}, lines=lines, always=True)


def dry_run_outcome(
    settings: Settings, sources: Sequence[Source], network: Network, left_out: Sequence[dict[str, str]]
) -> Outcome:
    """Return the list of files, and the sizes of those that have one before they are fetched."""
    from pipeline.sources import download as download_stage
    from pipeline.sources import hub, origin

    root = settings.root
    sources = [origin.with_folder(root, source) for source in sources]
    sources = [hub.list_source(root, source, network, settings.progress) for source in sources]
    rows = [row for source in sources for row in download_stage.list_files(root, source)]
    sizes = [file.local.stat().st_size if file.local else file.size for source in sources for file in source.files]
    lines = [f"{'there' if is_there else 'fetch':<6} {name:<28} {origin}" for name, origin, is_there in rows]
    records = [
        {"name": name, "origin": origin, "there": is_there, "bytes": size}
        for (name, origin, is_there), size in zip(rows, sizes, strict=True)
    ]
    if None not in sizes:
        total = sum(size or 0 for size in sizes)
        missing = sum(size or 0 for (_, _, is_there), size in zip(rows, sizes, strict=True) if not is_there)
        lines.append(f"{counted(len(rows), 'files')}, {total:,} bytes; {missing:,} bytes to fetch")
    return Outcome("unchanged", extra={"files": records, "left_out": left_out}, lines=lines)


def download_outcome(downloads: Sequence[DownloadResult], left_out: Sequence[dict[str, str]]) -> Outcome:
    counts = {
        "files": sum(len(download.names) for download in downloads),
        "fetched": sum(download.fetched for download in downloads),
        "unchanged": sum(download.unchanged for download in downloads),
        "bytes": sum(download.bytes for download in downloads),
    }
    result = "built" if counts["fetched"] else "unchanged"
    lines = [
        f"{download.result}: {download.fetched} fetched, {download.unchanged} already here, {download.path}"
        for download in downloads
    ]
    last = downloads[-1]
    return Outcome(result, f"raw/{last.source}", last.path, counts, extra={"left_out": left_out}, lines=lines)


def report_left_out(settings: Settings, references: Sequence[str], sources: Sequence[Source]) -> list[dict[str, str]]:
    """Report what is left out of local folders, and names that are both a source and a path; return the records."""
    from pipeline.sources.catalogue import CATALOGUE
    from pipeline.sources.walk import as_records, note_left_out

    for reference, source in zip(references, sources, strict=True):
        note_left_out(settings.progress, source.left_out, len(source.files), listed_by="--json")
        if reference in CATALOGUE and Path(reference).exists():
            settings.progress.note(f"{reference}: using the source; write ./{reference} for the path of this name")
    return as_records(entry for source in sources for entry in source.left_out)
