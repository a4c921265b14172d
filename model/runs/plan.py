"""Plans: what to train, and which unfinished run to resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from model import config, presets
from model.config import GPTConfig, Preset
from model.runs.run import CONFIG, Result, open_tokenizer
from pipeline.errors import BadConfig, InputMissing, UpstreamChanged
from pipeline.store import artifact, files
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import Identity, Input, check_name
from pipeline.tokenizers import Tokenizer

SCHEMA = 2
_MAY_CHANGE = ("dropout", "attention_dropout", "last_dropout", "block_size")


@dataclass(frozen=True)
class Plan:
    """A training that may be run: on which tokens, under which name, with which numbers.

    `parent` is the run whose weights it begins with, if any, and `parent_path` its folder; unless `afresh`, it takes
    the moments of the optimiser too and goes on where that run ended. `tensorboard` writes its events too.
    """

    name: str
    preset_name: str
    preset: Preset
    tokens: Artifact
    parent: Input | None = None
    parent_path: Path | None = None
    afresh: bool = False
    tensorboard: bool = False


class Annealed(Exception):
    """A signal ended the training before its time, and its weights were brought to rest: a run, in this folder."""

    def __init__(self, folder: Path, result: Result) -> None:
        super().__init__(str(folder))
        self.folder, self.result = folder, result


def check(
    preset_name: str, steps: int | None = None, minutes: float | None = None, settings: Mapping[str, Any] | None = None
) -> Preset:
    """The preset with the overrides in it. `steps` and `minutes` exclude each other; `minutes` is by the clock.

    Raises BadConfig for a training that cannot be, whatever the tokens.
    """
    return _overridden(presets.preset(preset_name), steps, minutes, settings)


def _overridden(preset: Preset, steps: int | None, minutes: float | None, settings: Mapping[str, Any] | None) -> Preset:
    if steps is not None and minutes is not None:
        raise BadConfig("--steps and --minutes exclude each other", hint="give one of them")
    if minutes is not None and not minutes > 0:
        raise BadConfig(f"{minutes} minutes are no time to train", hint="a number above 0")
    chosen = dict(settings or {})
    if minutes is not None:
        chosen["minutes"] = minutes
    if steps is not None:
        chosen |= {"steps": steps, "minutes": 0.0}
    made = config.override(preset, chosen)
    if made.train.document_mask and (made.model.convolution or made.model.bigrams):
        raise BadConfig("convolutions and pairs see across documents, which document_mask forbids", hint="drop one")
    return made


def plan(
    tokens: Artifact,
    preset_name: str,
    *,
    name: str = "",
    steps: int | None = None,
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """The training that `check` allows, fitted to the vocabulary of `tokens`; its run is named after the preset."""
    made = check(preset_name, steps, minutes, settings)
    fitted = dataclasses.replace(made, model=config.fit(made.model, tokens.manifest.counts["vocab_size"]))
    return Plan(check_name(name or preset_name), preset_name, fitted, tokens)


def plan_from(
    parent: Artifact,
    tokens: Artifact,
    preset_name: str,
    *,
    name: str = "",
    steps: int | None = None,
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """A training that begins with the weights of another run: its network, and the preset's numbers of training.

    Raises BadConfig for tokens of another tokenizer, and for a change of the network: only its dropout may change, and
    its block become shorter.
    """
    if tokens.manifest.tokenizer != parent.manifest.tokenizer:
        raise BadConfig(
            f"{tokens.ref} has the tokenizer {tokens.manifest.tokenizer}, {parent.ref} {parent.manifest.tokenizer}",
            hint=f"`tokenize` the text with --tokenizer {open_tokenizer(parent).name or 'of the run'}",
        )
    network = msgspec.convert(parent.manifest.options["model"], GPTConfig)
    chosen = dataclasses.replace(presets.preset(preset_name), model=network, family=network.family)
    made = _overridden(chosen, steps, minutes, settings)
    alike = dataclasses.replace(made.model, **{key: getattr(network, key) for key in _MAY_CHANGE})
    if changed := config.differences(alike, network):
        raise BadConfig(f"the network is that of {parent.ref}: {'; '.join(changed)}", hint="leave out that --set")
    if made.model.block_size > network.block_size:
        raise BadConfig(
            f"the network of {parent.ref} knows {network.block_size:,} positions, not {made.model.block_size:,}",
            hint="--set block_size=… may only make it smaller",
        )
    name = check_name(name or preset_name)
    if name == parent.manifest.name:
        raise BadConfig(f"the run would take the place of {name}, which it begins with", hint="give it a --name")
    return Plan(name, preset_name, made, tokens, parent.as_input("parent"), parent.path, afresh=True)


def identify(planned: Plan, ended: int = 0) -> Identity:
    """What the run of a plan is; or of one that a signal ended after that many steps."""
    options: dict[str, Any] = {
        "stage": SCHEMA,
        "model": dataclasses.asdict(planned.preset.model),
        "train": dataclasses.asdict(planned.preset.train),
    }
    if planned.afresh:
        options["afresh"] = True
    if ended:
        options["ended"] = ended
    inputs = (planned.tokens.as_input("tokens"), *([planned.parent] if planned.parent else []))
    return Identity("runs", planned.name, options, inputs, planned.tokens.manifest.tokenizer, ("torch",))


def continued(root: Path, planned: Plan) -> Plan:
    """The same plan, going on from the run that stands under its name if that was trained on other tokens.

    Other tokens of the same tokenizer, and with the same numbers: a new generation of the data. A run on these very
    tokens is the plan's own.
    """
    run = artifact.current(root, "runs", planned.name)
    if run is None or run.manifest.tokenizer != planned.tokens.manifest.tokenizer:
        return planned
    options = (run.manifest.options, dict(identify(planned).options))
    if len({msgspec.json.encode(each, order="deterministic") for each in options}) > 1:
        return planned
    made_from = {entry.role: entry for entry in run.manifest.inputs}
    if made_from["tokens"].digest != planned.tokens.digest:
        return dataclasses.replace(planned, parent=run.as_input("parent"), parent_path=run.path)
    parent = made_from.get("parent")
    path = root / parent.name if parent else None
    return dataclasses.replace(planned, parent=parent, parent_path=path if path and path.is_dir() else None)


def pinned(root: Path, planned: Plan) -> Plan:
    """The same plan on the generations, of the tokens and of the run that it goes on from, that an unfinished run of it
    was begun on.

    A refresh may have published newer ones meanwhile: the run keeps to its own. Raises UpstreamChanged when they are
    gone.
    """
    identity, drafts = identify(planned), list(artifact.unfinished(root, "runs", planned.name))
    if artifact.draft_path(root, identity) in [draft for draft, _ in drafts]:
        return planned
    for draft, made_from in drafts:
        begun = {entry.role: entry for entry in made_from}
        if begun.keys() != {entry.role for entry in identity.inputs}:
            continue
        if dataclasses.replace(identity, inputs=made_from).key != draft.name.removeprefix(".draft-"):
            continue  # other numbers
        try:
            found = {role: artifact.read(root / entry.name) for role, entry in begun.items()}
        except InputMissing as error:
            raise UpstreamChanged(
                f"what the unfinished run {planned.name} was begun on is gone: {error.what}",
                hint="--no-resume begins it anew on what there is",
            ) from None
        parent = found.get("parent")
        path = parent.path if parent else None
        return dataclasses.replace(planned, tokens=found["tokens"], parent=begun.get("parent"), parent_path=path)
    return planned


def require_unfinished(root: Path, planned: Plan) -> None:
    """Raise BadConfig with what differs when there are unfinished runs of this name, but none of this plan."""
    drafts = [draft for draft, _ in artifact.unfinished(root, "runs", planned.name)]
    if not drafts or artifact.draft_path(root, identify(planned)) in drafts:
        return
    other = _read_config(drafts[-1])
    model, train = planned.preset.model, planned.preset.train
    changed = config.differences(model, other.model) + config.differences(train, other.train) if other else []
    what = "; ".join(changed) or "on other tokens, or from another run"
    raise BadConfig(
        f"the unfinished run {planned.name} was begun otherwise: {what}",
        hint="give its numbers again, or --no-resume",
    )


def _read_config(folder: Path) -> Preset | None:
    try:
        return msgspec.json.decode((folder / CONFIG).read_bytes(), type=Preset)
    except (OSError, msgspec.DecodeError):
        return None


def begun(folder: Path, planned: Plan, tokenizer: Tokenizer) -> None:
    """The tokenizer and the numbers: what a run must have to be gone on with, and to be sampled."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    preset = {"preset": planned.preset_name, **asdict(planned.preset)}
    files.write_file(folder / CONFIG, msgspec.json.format(msgspec.json.encode(preset), indent=2))
