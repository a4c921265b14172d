"""The report command."""

from __future__ import annotations

import re
import webbrowser
from pathlib import Path

import click

from pipeline.commands.console import Choice, Command, Outcome, Settings


@click.command(cls=Command)
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="File to write (default: reports/NAME.html in the folder of the artifacts); an older report is replaced.",
)
@click.option("--open", "opens", is_flag=True, help="Open the report in the browser.")
@click.option(
    "--lang",
    type=Choice(["en", "zh"]),
    default="",
    metavar="LANG",
    help="Language of the report: en or zh (default: that of the locale).",
)
def report(settings: Settings, references: tuple[str, ...], out: Path | None, opens: bool, lang: str) -> Outcome:
    """Write a report of artifacts as one HTML file.

    REF is KIND/NAME of a corpus, tokens or a run, or the name or file of a recipe, whose report follows its chain.
    Several runs are compared. The file needs no network and contains no scripts.

    \b
    Examples:
      inkstone report book --open
      inkstone report corpora/book --out book.html --lang zh
    """
    from pipeline.report import chain, reports
    from pipeline.report.languages import language_of

    say = language_of(lang)
    path = reports.require_replaceable(out or reports.path_of(settings.root, _file_stem(references)))
    note = settings.progress.note
    artifacts = {entry.ref: entry for name in references for entry in chain.resolve(settings.root, name, note)}
    title = ", ".join(dict.fromkeys(entry.manifest.name for entry in artifacts.values()))
    with settings.progress.wait("reading the artifacts"):
        content = reports.render(title, list(artifacts.values()), say)
    reports.write(path, content)
    if opens and not webbrowser.open(path.absolute().as_uri()):
        settings.progress.note(f"warning: found no browser to open {path} with")
    return Outcome(
        "built",
        path=path,
        counts={"bytes": len(content)},
        extra={"artifacts": list(artifacts)},
        lines=[f"built: {path} ({len(content):,} bytes)"],
    )


def _file_stem(references: tuple[str, ...]) -> str:
    """Return the name of the file for references: `corpora/book` → corpora-book, `book.toml` → book."""
    names = [Path(name).stem if name.endswith(".toml") else name for name in references]
    return re.sub(r"[^\w.+-]+", "-", "-".join(names))[:60].strip("-.") or "report"
