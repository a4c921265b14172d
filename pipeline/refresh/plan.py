"""The plan of a refresh: for each stage, its state (fresh or stale), the reason, and the cost of running it.

Planning requests the state of the files from the servers and writes nothing. A stage is stale if the key of the
artifact it would publish is not the current one. The key is computed as far as the inputs of the stage are already
known.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import InkstoneError
from pipeline.refresh.stages import STAGES, Chain, Stage
from pipeline.refresh.state import StageTiming
from pipeline.runtime.engines import OpenEngine
from pipeline.sources import download
from pipeline.sources.download import FileStatus
from pipeline.sources.http import Network
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact
from pipeline.store.code import built_with, describe_changes
from pipeline.store.generations import current_key, draft_path, is_rolled_back, read_run_info
from pipeline.store.manifest import KINDS, Identity, Input
from pipeline.tokens import reuse

# Bytes written per byte of raw files, for stages without a measured run: 4.8 and 1.9 on a shard of the Pile with
# r50k_base. Uncompressed text grows less; a vocabulary above 65,536 ids needs more.
_GROWTH = {"clean": 4.8, "train-tokenizer": 0.0, "tokenize": 1.9, "train": 0.0}
_MAX_REASONS = 4  # reasons listed for a stale stage


@dataclass(frozen=True)
class RefreshOptions:
    """Options of a refresh.

    through       the last stage to run
    locked        keep all pins and do not check servers for changes
    allow_shrink  accept files that became smaller upstream
    rebuild       build every stage, also where the same key is published
    accept_worse  make a run current that is worse than the one before
    open_engine   opens the engine that cleans and tokenizes; None: this machine does
    """

    through: str = STAGES[-1]
    locked: bool = False
    allow_shrink: bool = False
    jobs: int = 1
    network: Network = field(default_factory=Network)
    rebuild: bool = False
    accept_worse: bool = False
    open_engine: OpenEngine | None = None


@dataclass(frozen=True)
class PlanStep:
    """One stage of a plan ("fresh" or "stale"), or its outcome ("built" or "unchanged").

    `what` is the artifact or recipe. `why` is the reason why the stage is stale, or why a fresh stage keeps a
    generation that was made from other inputs. `fetch` and `disk` are bytes to download and to write, `seconds` the
    estimated time; None means unknown. `reads` is the number of bytes of raw files that the stage processes; times are
    compared per byte. `note` names edited source files.
    """

    stage: str
    result: str
    what: str
    why: str = ""
    fetch: int | None = 0
    disk: int | None = 0
    seconds: float | None = 0.0
    reads: int = 0
    note: str = ""


@dataclass(frozen=True)
class RefreshPlan:
    """Steps of a refresh, the state of each source file upstream, and the artifacts of the fresh stages by name."""

    steps: tuple[PlanStep, ...]
    files: tuple[FileStatus, ...]
    fresh: Mapping[str, Artifact]


def plan(chain: Chain, options: RefreshOptions, timings: Mapping[str, StageTiming]) -> RefreshPlan:
    """Plan a run of the chain; `timings` are those of the last runs, by stage.

    Raises UpstreamChanged if a file of the source disappeared or shrank upstream, and TryAgain if a server cannot be
    reached: a plan is never made from an unreliable answer.
    """
    root = chain.root
    chain.list_files(options.network, update=not options.locked)
    survey = download.check_upstream(
        root, chain.source, options.network, update=not options.locked, allow_shrink=options.allow_shrink
    )
    for file in survey:
        if file.error:
            raise file.error
    sizes = {file.file.name: file.size or 0 for file in survey}
    changed = {file.file.name for file in survey if file.state != "there"}
    estimate = _Estimate(timings, chain.recipe.name)
    steps = [_download_step(chain.source.name, survey, timings)]
    stale = {"download"} if changed else set()
    for stage in chain.stages(options.through):
        names = stage.files or sizes.keys()
        total = sum(sizes[name] for name in names)
        if stage.existing:
            chain.artifacts[stage.label] = stage.existing
            steps.append(replace(_fresh_step(stage, stage.existing), why=stage.reason))
            continue
        blockers = [label for label in stage.after if label in stale and (label != "download" or changed & names)]
        if blockers:
            stale.add(stage.label)
            reads = sum(sizes[name] for name in changed) if _reuses_unchanged(chain, stage.name) else total
            why = _joined(f"{blockers[-1]} is stale", stage.reason, _outlook(chain, stage, stale))
            steps.append(estimate.step(stage, why, reads))
            continue
        identity, _ = stage.prepare()
        published = artifact.find_published(root, identity)
        is_current = published is not None and current_key(root / identity.kind / identity.name) == identity.key
        if published and is_current and not options.rebuild:
            chain.artifacts[stage.label] = published
            steps.append(_fresh_step(stage, published))
            continue
        if retained := retained_current(root, identity, accept_worse=options.accept_worse):
            chain.artifacts[stage.label], why = retained
            steps.append(PlanStep(stage.label, "fresh", retained[0].ref, why))
            continue
        stale.add(stage.label)
        fraction = 1.0
        if published:
            fraction = float(options.rebuild)
        elif _reuses_unchanged(chain, stage.name):
            fraction = reuse.remaining_fraction(root, identity)
        written = files.folder_size(draft_path(root, identity))
        reason = "--rebuild" if is_current else _reason(root, identity, published)
        why = _joined(reason, "" if published else _outlook(chain, stage, stale))
        step = estimate.step(stage, why, int(fraction * total), written)
        steps.append(replace(step, note=_note(identity, reason)))
    return RefreshPlan(tuple(steps), tuple(survey), dict(chain.artifacts))


def _note(identity: Identity, reason: str) -> str:
    """Return "built with your FILE" for edited files, unless the reason of a stale stage names one already."""
    edited = identity.code.edited
    return "" if any(path in reason for path in edited) else built_with(edited)


def _fresh_step(stage: Stage, published: Artifact) -> PlanStep:
    return PlanStep(stage.label, "fresh", published.ref, note=built_with(published.manifest.code))


def retained_current(root: Path, identity: Identity, *, accept_worse: bool) -> tuple[Artifact, str] | None:
    """Return the current artifact if it stays current instead of the one of `identity`, and the reason; else None.

    It stays if the artifact of `identity` was rolled back, or published without becoming current.
    """
    shelf = root / identity.kind / identity.name
    ref, run = f"{identity.kind}/{identity.name}/{identity.key}", read_run_info(shelf / identity.key)
    if is_rolled_back(root, identity):
        reason = f"{ref} was rolled back; nothing to do until the text changes"
    elif not accept_worse and not run.promoted and artifact.find_published(root, identity):
        reason = f"{ref} is {run.reason}; kept"
    else:
        return None
    current = artifact.current(root, identity.kind, identity.name)
    return (current, reason) if current else None


def _outlook(chain: Chain, stage: Stage, stale: Collection[str]) -> str:
    return chain.train_outlook(stale) if stage.name == "train" else ""


def _joined(*reasons: str) -> str:
    return "; ".join(reason for reason in reasons if reason)


def _download_step(source: str, survey: Sequence[FileStatus], timings: Mapping[str, StageTiming]) -> PlanStep:
    missing = [file for file in survey if file.state != "there"]
    if not missing:
        return PlanStep("download", "fresh", f"raw/{source}")
    first = missing[0]
    suffix = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    reason = f"{len(missing)} of {len(survey)} files: {first.file.name} {first.state} ({first.reason}){suffix}"
    sizes = [file.bytes for file in missing]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    timing = timings.get("download")
    seconds = timing.seconds * total / timing.bytes if timing and timing.bytes and total is not None else None
    return PlanStep("download", "stale", f"raw/{source}", reason, total, total, seconds, total or 0)


def _reuses_unchanged(chain: Chain, stage: str) -> bool:
    """Return True if a stage works on changed raw files only and reuses the rest from the previous generation."""
    options = chain.recipe.tokenize
    has_parts = chain.recipe.clean is None or len(chain.groups) > 1
    by_file = has_parts and options.dedup == "no" and not options.max_documents
    has_previous = bool(current_key(chain.root / "tokens" / chain.recipe.name))
    return stage == "tokenize" and by_file and options.format != "hdf5" and has_previous


@dataclass(frozen=True)
class _Estimate:
    """Cost of a stage, in proportion to its bytes of raw files, from the timings of the last runs."""

    timings: Mapping[str, StageTiming]
    recipe: str

    def step(self, stage: Stage, why: str, reads: int, already_written: int = 0) -> PlanStep:
        """Return a stale step. `already_written` is the size in bytes of an unfinished run of the same stage."""
        timing = self.timings.get(stage.label)
        if timing is None or not timing.bytes:
            disk, seconds = reads * _GROWTH[stage.name], None if reads else 0.0
        else:
            disk, seconds = timing.made * reads / timing.bytes, timing.seconds * reads / timing.bytes
        return PlanStep(stage.label, "stale", self.recipe, why, 0, max(0, int(disk) - already_written), seconds, reads)


def _reason(root: Path, identity: Identity, published: Artifact | None) -> str:
    """Return the reason why a stage is stale: the inputs, options or versions that differ from the current ones."""
    if published:
        return f"back to {identity.key}, which exists already"
    try:
        current = artifact.current(root, identity.kind, identity.name)
    except InkstoneError as error:
        return error.message
    if current is None:
        return "not built yet"
    manifest = current.manifest
    if manifest.key == identity.key:
        return artifact.find_problems(current)[0]
    reasons = describe_changes(manifest.code, identity.code.edited)
    reasons += _differences(_digests(manifest.inputs), _digests(identity.inputs), "changed")
    reasons += _differences(_flatten(manifest.options), _flatten(identity.options))
    reasons += _differences(manifest.libraries, identity.versions())
    if manifest.tokenizer != identity.tokenizer:
        reasons.append("another tokenizer")
    omitted = len(reasons) - _MAX_REASONS
    return "; ".join(reasons[:_MAX_REASONS]) + (f"; and {omitted} more" if omitted > 0 else "")


def _digests(inputs: Sequence[Input]) -> dict[str, str]:
    """Return the digests of inputs by name: that of a file, or kind/name of an artifact.

    The digests of the parts of a corpus are joined. The parent of a run is left out: `_outlook` describes it.
    """
    digests: dict[str, str] = {}
    for entry in inputs:
        if entry.role != "parent":
            name = entry.name.rpartition("/")[0] if entry.name.split("/")[0] in KINDS else entry.name
            digests[name] = digests.get(name, "") + entry.digest
    return digests


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return options as JSON by name, nested ones by dotted name."""
    flat: dict[str, str] = {}
    for name, value in options.items():
        if name == "files":  # compared as inputs
            continue
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value)
    return flat


def _differences(old: Mapping[str, str], new: Mapping[str, str], verb: str = "") -> list[str]:
    """Describe the entries added, removed and changed between two tables; `verb` replaces the old and new values."""
    added = [f"{name} is new" for name in new if name not in old]
    removed = [f"{name} is gone" for name in old if name not in new]
    changed = [name for name in new if name in old and old[name] != new[name]]
    return [
        *added,
        *removed,
        *(f"{name} {verb}" if verb else f"{name} {old[name]} → {new[name]}" for name in changed),
    ]
