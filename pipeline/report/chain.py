"""Artifacts of a report: those that a reference names, or for a recipe all from its corpora to its run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import InkstoneError, InputMissing
from pipeline.refresh import recipe as recipes
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import KINDS

_REPORTED = ("corpora", "tokens", "runs")  # in the order of their stages, as in a report


def resolve(root: Path, reference: str, report: Callable[[str], None]) -> list[Artifact]:
    """Return the artifacts that `reference` names, in the order of their stages.

    KIND/NAME[/KEY] and the path of an artifact name one artifact. A bare name, or the path of a recipe, names the chain
    of the last artifact with that name. `report` receives a line for each artifact of a chain that is left out, because
    it was deleted or cannot be read. Raises InputMissing if there is none.
    """
    if reference.partition("/")[0] in KINDS:
        return [artifact.find(root, reference.partition("/")[0], reference)]
    if reference.endswith(".toml"):
        return chain(root, recipes.load(reference).name, report)
    if (Path(reference) / "manifest.json").is_file():
        return [artifact.read(Path(reference).resolve())]
    return chain(root, reference, report)


def chain(root: Path, name: str, report: Callable[[str], None]) -> list[Artifact]:
    """Return the last artifact of a name and those that it was made from, in the order of their stages.

    `report` is as in `resolve`.
    """
    last = next(filter(None, (artifact.current(root, kind, name) for kind in reversed(_REPORTED))), None)
    if last is None:
        raise InputMissing(f"{name}: no artifact has this name", hint="`inkstone status` lists all artifacts")
    artifacts = {entry.ref: entry for entry in _sources(root, last, report)}
    return sorted(artifacts.values(), key=lambda entry: _REPORTED.index(entry.manifest.kind))


def _sources(root: Path, last: Artifact, report: Callable[[str], None]) -> Iterator[Artifact]:
    """Yield an artifact and the corpora and tokens that it was made from, without those that cannot be read."""
    yield last
    for entry in last.manifest.inputs:
        if entry.name.startswith(("corpora/", "tokens/")):
            try:
                source = artifact.read_ref(root, entry.name)
            except InkstoneError as error:
                report(f"warning: the report leaves out {entry.name}: {error.message}")
                continue
            yield from _sources(root, source, report)
