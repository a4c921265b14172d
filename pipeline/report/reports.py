"""Reports of artifacts: the chapters of a page, and the files in `reports/`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from pipeline.errors import BadConfig
from pipeline.report import overview, page
from pipeline.report.languages import Language, language_of
from pipeline.report.section import Chapter
from pipeline.runtime.progress import Advance
from pipeline.store import files
from pipeline.store.artifact import Artifact, lease, require_intact

FOLDER = "reports"
# Modules with a function `chapter(artifact, say)`, by kind. They are imported when a report needs them: `status`, which
# only lists reports, takes less time than they.
CHAPTERS = {"corpora": "pipeline.report.corpus_sections", "tokens": "pipeline.report.tokens_sections"}


def render(title: str, artifacts: Sequence[Artifact], say: Language, advance: Advance = lambda count: None) -> bytes:
    """Return the page about artifacts, one chapter for each, and for a chain one before them with all stages.

    `advance` is called with the bytes of each artifact that was read. Raises BadData for one that is damaged,
    InputMissing for one that was pruned meanwhile.
    """
    reported = [entry for entry in artifacts if entry.manifest.kind in CHAPTERS]
    if not reported:
        kinds = ", ".join(CHAPTERS)
        raise BadConfig(f"{title}: there are no reports of this kind", hint=f"reports exist for {kinds}")
    is_chain = len({entry.manifest.kind for entry in artifacts}) > 1
    chapters = [overview.chapter(artifacts, say)] if is_chain else []
    for entry in reported:
        with lease(entry):
            chapters.append(_chapter(require_intact(entry), say))
        advance(size_of(entry))
    return page.render(title, chapters, say)


def size_of(entry: Artifact) -> int:
    """Return the bytes of the files of an artifact."""
    return sum(record.size for record in entry.manifest.files)


def _chapter(entry: Artifact, say: Language) -> Chapter:
    describe: Callable[[Artifact, Language], Chapter] = import_module(CHAPTERS[entry.manifest.kind]).chapter
    return describe(entry, say)


def path_of(root: Path, name: str) -> Path:
    """Return the path of the report of a recipe."""
    return root / FOLDER / f"{name}.html"


def write_of_recipe(root: Path, name: str, lang: str) -> Path:
    """Write the report of a recipe, about the chain of what is current, and return its path."""
    from pipeline.report import chain

    path = path_of(root, name)
    write(path, render(name, chain.chain(root, name), language_of(lang)))
    return path


def paths(root: Path) -> list[Path]:
    """Return the reports in the folder of artifacts, sorted."""
    return sorted(path for path in (root / FOLDER).glob("*.html") if not path.name.startswith("."))


def write(path: Path, content: bytes) -> None:
    """Write a report atomically, in place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_file(path, content)
