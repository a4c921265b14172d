"""The plan of a refresh: of each stage whether it is fresh, or stale and why, and what running it will take.

Planning asks the servers what they have, and writes nothing. Whether a stage is stale is a matter of keys: that of
what it would publish is computed, as far as its inputs are already known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import InkstoneError
from pipeline.refresh.stages import STAGES, Chain
from pipeline.refresh.state import Pace
from pipeline.sources import download
from pipeline.sources.download import Found
from pipeline.sources.http import Network
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact
from pipeline.store.generations import current_key, draft_path, is_rolled_back
from pipeline.store.manifest import KINDS, Identity, Input
from pipeline.tokens import reuse

# Bytes that a stage makes of a byte of raw files where no run has shown it yet: 4.8 and 1.9 on a shard of the Pile with
# r50k_base. Plain text, which is not compressed, grows less; what a vocabulary of more than 65,536 ids makes, more.
_GROWTH = {"clean": 4.8, "train-tokenizer": 0.0, "tokenize": 1.9, "train": 0.0}


@dataclass(frozen=True)
class Options:
    """How to refresh. `through` is the last stage to run; with `locked` no server is asked about what is there, and
    no pin moves; `allow_shrink` takes files that became smaller upstream."""

    through: str = STAGES[-1]
    locked: bool = False
    allow_shrink: bool = False
    jobs: int = 1
    network: Network = field(default_factory=Network)


@dataclass(frozen=True)
class Step:
    """One stage of a plan ("fresh" or "stale"), or what became of it ("built" or "unchanged").

    `fetch` and `disk` are bytes to fetch and to write, `seconds` the time it may take; None: not known. `reads` are
    the bytes of raw files that it works on: by them what it took is compared with other runs.
    """

    stage: str
    result: str
    what: str
    why: str = ""
    fetch: int | None = 0
    disk: int | None = 0
    seconds: float | None = 0.0
    reads: int = 0


@dataclass(frozen=True)
class Plan:
    """What a refresh would do. `found` is what the servers have, `made` what is fresh, by stage."""

    steps: tuple[Step, ...]
    found: tuple[Found, ...]
    made: Mapping[str, Artifact]


def plan(chain: Chain, options: Options, paces: Mapping[str, Pace]) -> Plan:
    """What running the chain would do; `paces` are those of its last runs.

    Raises UpstreamChanged when a file of the source was lost or shrank upstream, and TryAgain when that cannot be
    asked: nothing of an answer that is in doubt is taken.
    """
    root = chain.root
    found = download.survey(
        root, chain.source, options.network, update=not options.locked, allow_shrink=options.allow_shrink
    )
    for each in found:
        if each.error:
            raise each.error
    total = sum(each.size or 0 for each in found)
    changed = sum(each.size or 0 for each in found if each.state != "there")
    estimate = _Estimate(paces, chain.recipe.name)
    steps = [_download_step(chain.source.name, found, paces)]
    for stage in chain.stages(options.through):
        before = steps[-1]
        if before.result == "stale":
            reads = changed if _takes_over(chain, stage.name) else total
            steps.append(estimate.step(stage.name, f"{before.stage} is stale", reads))
            continue
        identity, _ = stage.prepare()
        standing = artifact.published(root, identity)
        shelf = root / identity.kind / identity.name
        if standing and current_key(shelf) == identity.key:
            chain.made[stage.name] = standing
            steps.append(Step(stage.name, "fresh", standing.ref))
        else:
            share = 0.0 if standing else reuse.share_left(root, identity) if _takes_over(chain, stage.name) else 1.0
            there = files.bytes_below(draft_path(root, identity))
            steps.append(estimate.step(stage.name, _why(root, identity, standing), int(share * total), there))
    return Plan(tuple(steps), tuple(found), dict(chain.made))


def _download_step(source: str, found: list[Found], paces: Mapping[str, Pace]) -> Step:
    missing = [each for each in found if each.state != "there"]
    if not missing:
        return Step("download", "fresh", f"raw/{source}")
    first, more = missing[0], f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    why = f"{len(missing)} of {len(found)} files: {first.file.name} {first.state} ({first.why}){more}"
    sizes = [each.bytes for each in missing]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    pace = paces.get("download")
    seconds = pace.seconds * total / pace.bytes if pace and pace.bytes and total is not None else None
    return Step("download", "stale", f"raw/{source}", why, total, total, seconds, total or 0)


def _takes_over(chain: Chain, stage: str) -> bool:
    """Whether a stage works only on the raw files that changed, and takes the rest from the generation before."""
    chosen = chain.recipe.tokenize
    alone = chain.recipe.clean is None and chosen.dedup == "no" and not chosen.max_documents and chosen.format != "hdf5"
    return stage == "tokenize" and alone and bool(current_key(chain.root / "tokens" / chain.recipe.name))


@dataclass(frozen=True)
class _Estimate:
    """What a stage will take, judged by its last runs: so much for each byte of the raw files."""

    paces: Mapping[str, Pace]
    recipe: str

    def step(self, stage: str, why: str, reads: int, there: int = 0) -> Step:
        """`there`: bytes that an unfinished run of this very stage has written already."""
        pace = self.paces.get(stage)
        if pace is None or not pace.bytes:
            made, seconds = reads * _GROWTH[stage], None if reads else 0.0
        else:
            made, seconds = pace.made * reads / pace.bytes, pace.seconds * reads / pace.bytes
        return Step(stage, "stale", self.recipe, why, 0, max(0, int(made) - there), seconds, reads)


def _why(root: Path, identity: Identity, standing: Artifact | None) -> str:
    """What makes a stage stale: the input, option or version that differs from what stands."""
    if is_rolled_back(root, identity):
        return f"{identity.key} was rolled back"
    if standing:
        return f"back to {identity.key}, which is there"
    try:
        current = artifact.current(root, identity.kind, identity.name)
    except InkstoneError as error:
        return error.what
    if current is None:
        return "not made yet"
    manifest = current.manifest
    if manifest.key == identity.key:
        return artifact.problems(current)[0]
    told = _differences(_digests(manifest.inputs), _digests(identity.inputs), "changed")
    told += _differences(_flat(manifest.options), _flat(identity.options))
    told += _differences(manifest.libraries, identity.versions())
    if manifest.tokenizer != identity.tokenizer:
        told.append("another tokenizer")
    return "; ".join(told[:4]) + (f"; and {len(told) - 4} more" if len(told) > 4 else "")


def _digests(inputs: Sequence[Input]) -> dict[str, str]:
    """Digests of inputs by what they are: a file by its name, an artifact by its name without the key."""
    return {
        each.name.rpartition("/")[0] if each.name.split("/")[0] in KINDS else each.name: each.digest for each in inputs
    }


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Options by name, those inside others by both names."""
    found: dict[str, str] = {}
    for name, value in options.items():
        if name == "files":  # which those are the inputs tell
            continue
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": json.dumps(value)}
    return found


def _differences(old: Mapping[str, str], new: Mapping[str, str], verb: str = "") -> list[str]:
    """What came, went or changed between two tables; with `verb` instead of the values."""
    told = [f"{name} is new" for name in new if name not in old]
    told += [f"{name} is gone" for name in old if name not in new]
    both = [name for name in new if name in old and old[name] != new[name]]
    return told + [f"{name} {verb}" if verb else f"{name} {old[name]} → {new[name]}" for name in both]
