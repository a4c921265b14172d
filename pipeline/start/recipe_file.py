"""Recipe files: `start` writes NAME.toml in the current folder, `recipe` the recipe of what was built.

Users may edit them. When `start` adds text, everything else in the file stays as it is, comments included.
"""

from __future__ import annotations

import errno
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from pipeline.errors import BadConfig, from_os_error
from pipeline.refresh import recipe as recipes
from pipeline.refresh import recipe_keys
from pipeline.refresh.recipe import Recipe
from pipeline.store import files

_WIDTH = 100  # columns of a comment
_MARK = "# Written by `inkstone start`"
_HEADER = f"""{_MARK}. Edit any value; `inkstone refresh {{name}}.toml` runs what changed, also from cron.
# `inkstone start --name {{name}} MORE` adds text and keeps everything else.
"""


def load(path: Path) -> Recipe:
    """Read a recipe that `start` wrote. Raises BadConfig if it was written by hand or is not a valid recipe."""
    if not path.read_text(encoding="utf-8", errors="replace").lstrip("\ufeff").startswith(_MARK):
        raise BadConfig(
            f"{path.name} was not written by `start`, so it is not changed",
            hint=f"choose another name with --name, or run `inkstone refresh {path.name}`",
        )
    return recipes.load(path)


def write(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a new recipe; its name is that of the file."""
    header = _HEADER.format(name=path.stem).splitlines()
    _save(path, render(path.stem, sections, header))


def render(
    name: str, sections: Mapping[str, Mapping[str, Any]], header: Sequence[str], *, explain: bool = False
) -> str:
    """Return a recipe as text, below comments with the lines of `header`; `explain` describes each key in a comment."""
    types = recipe_keys.section_types(Recipe)
    document = tomlkit.document()
    for line in header:
        document.add(tomlkit.comment(line.removeprefix("# ")))
    document.add("name", tomlkit.item(name))
    for section, values in sections.items():
        table = tomlkit.table()
        described = recipe_keys.descriptions(types[section]) if explain else {}
        for key, value in values.items():
            item = tomlkit.item(value)
            if key in ("source", "prompts") and isinstance(item, tomlkit.items.Array):
                item.multiline(True)
            for line in textwrap.wrap(described.get(key, ""), _WIDTH):
                table.add(tomlkit.comment(line))
            table.add(key, item)
        document.add(tomlkit.nl())
        document.add(section, table)
    return tomlkit.dumps(document)


def extend(
    path: Path, sources: Sequence[str], minutes: float | None, values: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Add sources to a recipe. Set the minutes of training and the `values` of sections, if given."""
    try:
        document = tomlkit.parse(path.read_bytes().decode("utf-8-sig"))  # line ends stay as they are
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: not TOML: {error}", hint="correct it, or choose another name with --name") from None
    if sources:
        download = document["download"]
        existing = download["source"]
        if isinstance(existing, str):
            download["source"] = tomlkit.item([existing, *sources]).multiline(True)
        else:
            for source in sources:
                existing.append(source)
    if minutes is not None:
        train = document["train"]
        train.pop("steps", None)
        train["minutes"] = minutes
    for section, entries in (values or {}).items():
        for key, value in entries.items():
            document.setdefault(section, tomlkit.table())[key] = value
    _save(path, tomlkit.dumps(document))


def _save(path: Path, text: str) -> None:
    """Write the file of a recipe. Raises NotPermitted or CannotCreate if its folder is not writable."""
    try:
        files.write_file(path, text.encode())
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        reason = os.strerror(error.errno).lower()
        hint = "change to a writable folder, and name the text by its path"
        error_class = type(from_os_error(error))
        raise error_class(f"{path}: the recipe is written into the current folder: {reason}", hint=hint) from None


def as_source(reference: str, folder: Path) -> str:
    """Return an input as a recipe in `folder` refers to it: a relative path below that folder, else an absolute one.

    Names of sources and URLs are returned unchanged.
    """
    path = Path(reference)
    if not path.exists():
        return reference
    resolved, base = path.resolve(), folder.resolve()
    return os.path.relpath(resolved, base) if resolved.is_relative_to(base) else str(resolved)
