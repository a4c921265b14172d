"""Reports of artifacts: the chapters of a page, and the files in `reports/`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path, PurePosixPath

from pipeline.errors import BadConfig, CannotCreate
from pipeline.report import overview, page
from pipeline.report.languages import Language, language_of
from pipeline.report.section import Chapter
from pipeline.store import files
from pipeline.store.artifact import Artifact, lease, require_intact
from pipeline.store.generations import current_key

FOLDER = "reports"
# Modules with a function `chapter(artifact, say)`, by kind. They are imported when a report needs them, because
# importing them takes longer than `status`, which only lists reports.
CHAPTERS = {
    "corpora": "pipeline.report.corpus_sections",
    "tokens": "pipeline.report.tokens_sections",
    "runs": "pipeline.report.run_sections",
}


def render(title: str, artifacts: Sequence[Artifact], say: Language) -> bytes:
    """Return the page about artifacts, one chapter for each.

    A chain gets an overview by stage first, and several runs a comparison. Raises BadData if an artifact is damaged,
    InputMissing if one was pruned meanwhile, BadConfig if there is no report for artifacts of these kinds.
    """
    reported = [entry for entry in artifacts if entry.manifest.kind in CHAPTERS]
    if not reported:
        kinds = ", ".join(CHAPTERS)
        raise BadConfig(f"{title}: no report for artifacts of this kind", hint=f"there are reports for {kinds}")
    with ExitStack() as leases:
        for entry in reported:
            leases.enter_context(lease(entry))
        chapters = [_chapter(require_intact(entry), say) for entry in reported]
        if len(runs := [entry for entry in reported if entry.manifest.kind == "runs"]) > 1:
            from pipeline.report import run
            from pipeline.report.runs import chapter

            chapters.insert(0, chapter([run.collect(entry) for entry in runs], say))
    if len({entry.manifest.kind for entry in reported}) > 1:
        chapters.insert(0, overview.chapter(reported, say))
    return page.render(title, chapters, say)


def _chapter(entry: Artifact, say: Language) -> Chapter:
    describe: Callable[[Artifact, Language], Chapter] = import_module(CHAPTERS[entry.manifest.kind]).chapter
    return describe(entry, say)


def path_of(root: Path, name: str) -> Path:
    """Return the path of the report of a recipe."""
    return root / FOLDER / f"{name}.html"


def write_recipe_report(root: Path, name: str, lang: str, report: Callable[[str], None]) -> Path:
    """Write the report of a recipe about its current artifacts, and return its path.

    `report` receives a line for each artifact that is left out.
    """
    from pipeline.report import chain

    path = require_replaceable(path_of(root, name))
    write(path, render(name, chain.chain(root, name, report), language_of(lang)))
    return path


def outdated_refs(root: Path, content: bytes) -> list[str]:
    """Return the described artifacts that are no longer current, as kind/name/key."""
    refs = map(PurePosixPath, page.refs_of(content))
    return [str(ref) for ref in refs if current_key(root / ref.parent) != ref.name]


def paths(root: Path) -> list[Path]:
    """Return the reports in the folder of artifacts, sorted."""
    return sorted(path for path in (root / FOLDER).glob("*.html") if not path.name.startswith("."))


def require_replaceable(path: Path) -> Path:
    """Return `path` if a report may be written there. Raises CannotCreate if it holds anything but a report."""
    if os.path.lexists(path) and not (path.is_file() and page.is_report(path)):
        raise CannotCreate(f"{path}: exists and is not a report", hint="choose another file with --out")
    return path


def write(path: Path, content: bytes) -> None:
    """Write a report atomically, in place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_file(path, content)
