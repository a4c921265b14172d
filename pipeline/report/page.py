"""Rendering of a report as one HTML file, without scripts, pictures or requests.

Equal inputs give equal bytes: there is no time and no path in a page.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.report.languages import Language
from pipeline.report.section import Chapter, cell_text
from pipeline.runtime.terminal import printable, printable_block

if TYPE_CHECKING:
    import jinja2

_CHECKSUM = re.compile(rb"<!-- sha256 ([0-9a-f]{64}) -->\n\Z")
_HEAD = 1 << 20  # bytes with the references, which may be many
_REFS = re.compile(rb'<meta name="inkstone-artifacts" content="([^"]*)">')


def stylesheet() -> str:
    """Return the CSS of a report, which the page of `serve` uses too."""
    return (files("pipeline.report") / "style.css").read_text(encoding="utf-8")


def render(title: str, chapters: Sequence[Chapter], say: Language) -> bytes:
    """Return the page of a report. Its last line is a comment with the sha256 of all bytes before it."""
    template = _environment().get_template("page.html.j2")
    text = template.render(title=title, chapters=chapters, say=say, style=stylesheet())
    content = f"{text}\n".encode()
    return content + f"<!-- sha256 {hashlib.sha256(content).hexdigest()} -->\n".encode()


def is_intact(page: bytes) -> bool:
    """Return True if the bytes of a page are those that `render` returned."""
    match = _CHECKSUM.search(page)
    return match is not None and hashlib.sha256(page[: match.start()]).hexdigest().encode() == match[1]


def is_report(path: Path) -> bool:
    """Return True if a regular file begins as the page of a report."""
    with open(path, "rb") as file:
        return bool(_REFS.search(file.read(_HEAD)))


def refs_of(page: bytes) -> list[str]:
    """Return the artifacts that a page is about, each as kind/name/key."""
    match = _REFS.search(page)
    return match[1].decode().split() if match else []


@cache
def _environment() -> jinja2.Environment:
    import jinja2  # takes longer than reading the artifacts

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters |= {"cell": cell_text, "line": printable, "block": printable_block}
    return environment


def _template(name: str) -> str:
    return (files("pipeline.report") / "templates" / name).read_text(encoding="utf-8")
