"""Reports of artifacts: the chapters of a page, and the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import BadConfig
from pipeline.report import corpus_sections, page, tokens_sections
from pipeline.report.languages import Language
from pipeline.report.section import Chapter
from pipeline.store import files
from pipeline.store.artifact import Artifact, require_intact

FOLDER = "reports"
CHAPTERS: dict[str, Callable[[Artifact, Language], Chapter]] = {
    "corpora": corpus_sections.chapter,
    "tokens": tokens_sections.chapter,
}


def render(title: str, artifacts: Sequence[Artifact], say: Language) -> bytes:
    """Return the page about artifacts, one chapter for each. Raises BadData for one that is damaged."""
    chapters = [CHAPTERS[entry.manifest.kind](require_intact(entry), say) for entry in artifacts if _is_reported(entry)]
    if not chapters:
        kinds = ", ".join(CHAPTERS)
        raise BadConfig(f"{title}: there are no reports of this kind", hint=f"reports exist for {kinds}")
    return page.render(title, chapters, say)


def _is_reported(entry: Artifact) -> bool:
    return entry.manifest.kind in CHAPTERS


def path_of(root: Path, name: str) -> Path:
    """Return the path of the report of a recipe."""
    return root / FOLDER / f"{name}.html"


def write(path: Path, content: bytes) -> None:
    """Write a report atomically, in place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_file(path, content)
