"""Training plans: what to train on which tokens, and which run to continue."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from model import config, presets
from model.config import GPTConfig, Preset
from model.runs.run import CONFIG, NGRAMS, Result, open_tokenizer, read_preset_name
from pipeline.errors import BadConfig, BadData
from pipeline.store import artifact, code, files
from pipeline.store.artifact import Artifact
from pipeline.store.generations import unfinished_drafts
from pipeline.store.manifest import Identity, Input, check_name
from pipeline.tokenizers import Tokenizer

if TYPE_CHECKING:
    from model.network.ngrams import NGrams

SCHEMA = 2
CODE = code.Code(
    (
        *("model/network", "model/training", "model/runs", "model/config.py", "model/device.py"),
        *("pipeline/tokens/store.py", "pipeline/tokens/segments.py", "pipeline/tokens/hdf5.py"),
        *("pipeline/tokens/originals.py", "pipeline/tokens/roundtrip.py"),
    ),
    code.HARMLESS
    | {
        "model/generation": "samples texts for people",
        "model/presets.py": "numbers, which are part of the key",
        "model/runs/continuing.py": "chooses the run to continue, which is part of the key",
        "model/runs/plan.py": "chooses numbers and tokens, which are part of the key",
        "model/runs/tuning.py": "chooses numbers and tokens, which are part of the key",
        "model/runs/run.py": "reads finished runs",
        "model/runs/unfinished.py": "chooses which run to resume",
        "model/settings.py": "refuses numbers, which are part of the key",
        "model/training/baselines.py": "losses of other models, for people",
        "model/training/loss_curve.py": "draws",
        "model/training/progress.py": "reports to people, and timers",
        "pipeline/runtime/workers.py": "starts processes, in which nothing is computed",
        "pipeline/tokenizers": "decodes texts for people; the tokenizer's fingerprint is part of the key",
    },
)
AUTO = "auto"  # instead of a preset's name in a recipe: see `resolve_auto`
_CHANGEABLE = ("dropout", "attention_dropout", "last_dropout", "block_size", "ngram")  # of the network of a parent run


class Length(msgspec.Struct, frozen=True):
    """The length of a training, in steps, or in minutes if they are not 0."""

    steps: int
    minutes: float


@dataclass(frozen=True)
class TrainPlan:
    """A training that can be run: its run's name, its configuration and its tokens.

    `parent` is the run that it starts from, if any, and `parent_path` the folder of that run, None if it is gone. With
    `weights_only` the parent's best weights are loaded and training starts at step 0; otherwise the optimizer's moments
    are loaded too and training continues where the parent ended. `from_scratch` is the reason why the published run of
    this name is not continued, "" if it is, or if there is none. `tensorboard` also writes TensorBoard events. `prompt`
    is the text to continue at each evaluation, "" for the beginning of the validation text. `usual_length` is the
    length of other trainings of this name, None if this one has the same. `given` are the names of the settings that
    do not come from the preset.
    """

    name: str
    preset_name: str
    preset: Preset
    tokens: Artifact
    parent: Input | None = None
    parent_path: Path | None = None
    weights_only: bool = False
    from_scratch: str = ""
    tensorboard: bool = False
    prompt: str = ""
    usual_length: Length | None = None
    given: frozenset[str] = frozenset()


class Annealed(Exception):
    """Training was ended early by a signal, after its learning rates fell to zero; `folder` holds the resulting run."""

    def __init__(self, folder: Path, result: Result) -> None:
        super().__init__(str(folder))
        self.folder, self.result = folder, result


def resolve_preset(
    preset_name: str, steps: int | None = None, minutes: float | None = None, settings: Mapping[str, Any] | None = None
) -> Preset:
    """Return the preset with the overrides applied; `steps` and `minutes` of wall-clock time exclude each other.

    Raises BadConfig for a configuration that is invalid for any tokens.
    """
    return override_preset(presets.get_preset(preset_name), steps, minutes, settings)


def override_preset(
    preset: Preset, steps: int | None, minutes: float | None, settings: Mapping[str, Any] | None
) -> Preset:
    """Return `preset` with the overrides applied: see `resolve_preset`."""
    if steps is not None and minutes is not None:
        raise BadConfig("--steps and --minutes exclude each other", hint="give one of them")
    _require_positive(minutes)
    overrides = dict(settings or {})
    if minutes is not None:
        overrides["minutes"] = minutes
    if steps is not None:
        overrides = {"epochs": 0.0} | overrides | {"steps": steps, "minutes": 0.0}
    preset = config.override(preset, overrides)
    if preset.train.document_mask and (preset.model.convolution or preset.model.bigrams):
        raise BadConfig(
            "document_mask excludes convolution and bigrams, which look across document boundaries",
            hint="set document_mask=false, or convolution=0 and bigrams=0",
        )
    return preset


def _require_positive(minutes: float | None) -> None:
    if minutes is not None and not minutes > 0:
        raise BadConfig(f"--minutes must be greater than 0, got {minutes:g}", hint="give a positive number")


@dataclass(frozen=True)
class Resolved:
    """A preset for tokens and the name of their run: the settings that differ from it, its length, and the reason.

    `minutes` is None if the length is in the settings, as for an earlier run.
    """

    preset_name: str
    settings: dict[str, Any]
    minutes: float | None
    reason: str

    def __str__(self) -> str:
        values = {name: value for name, value in self.settings.items() if name not in ("steps", "minutes")}
        changes = " ".join(f"{name}={value}" for name, value in values.items())
        return f"{self.preset_name}{f' with {changes}' if changes else ''}: {self.reason}"


def resolve_auto(root: Path, tokens: Artifact, name: str, minutes: float | None, device: str) -> Resolved:
    """Choose the preset of the run `name` on `tokens`, where none is named.

    A name that has a published or else an unfinished run keeps the preset, the settings and the length of that run;
    otherwise `presets.choose` decides. `minutes` replaces the length; `device` is that of the training, or "auto".
    """
    _require_positive(minutes)
    for folder in earlier_folders(root, name):
        preset_name, resolved = read_preset(folder)
        if resolved is None or preset_name not in presets.PRESETS:
            continue  # an imported run, or one of a preset that no longer exists
        settings = settings_of(resolved, presets.get_preset(preset_name))
        if minutes is not None:
            settings = {field: value for field, value in settings.items() if field not in ("steps", "minutes")}
        state = "unfinished " if folder.name.startswith(".") else ""
        return Resolved(preset_name, settings, minutes, f"as in the {state}run {name}")
    from model import device as devices  # imports torch

    picked, counts = devices.pick_device(device), tokens.manifest.counts
    choice = presets.choose(
        counts["train_tokens"], counts["vocab_size"], picked.type, minutes, devices.free_memory(picked)
    )
    return Resolved(choice.preset, dict(choice.settings), choice.minutes, choice.reason)


def earlier_folders(root: Path, name: str) -> list[Path]:
    """Return the folder of the current run of a name; without one, the folders of unfinished runs, the last first."""
    with suppress(BadData):  # `continue_published` handles a damaged one
        if published := artifact.current(root, "runs", check_name(name)):
            return [published.path]
    return [draft for draft, _ in reversed([*unfinished_drafts(root, "runs", name)])]


def read_preset(folder: Path) -> tuple[str, Preset | None]:
    """Return the name of the preset and the resolved preset of a run or a draft; "" and None if it has none."""
    preset = read_config(folder)
    return (read_preset_name(folder), preset) if preset else ("", None)


def settings_of(resolved: Preset, preset: Preset) -> dict[str, Any]:
    """Return the settings that turn `preset` into `resolved`, without a vocabulary size that the tokenizer decides."""
    pairs = ((resolved.model, preset.model), (resolved.train, preset.train))
    settings = {
        field.name: getattr(config, field.name)
        for config, reference in pairs
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(reference, field.name)
    }
    if not preset.model.vocab_size:
        settings.pop("vocab_size", None)
    return settings


def make_plan(
    tokens: Artifact,
    preset_name: str,
    *,
    parent: Artifact | None = None,
    name: str = "",
    steps: int | None = None,
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
) -> TrainPlan:
    """Plan a training on `tokens`; its run is named after the preset unless `name` is given.

    With `parent`, a run, it starts from the network and the best weights of that run, and takes only its training
    settings from the preset. Raises BadConfig if the tokens and the configuration do not fit together.
    """
    if kind := kind_of(tokens):
        raise BadConfig(
            f"{tokens.ref} has {'conversations' if kind == 'chat' else 'pairs of answers'}, which tune a run",
            hint="`inkstone train TOKENS --from RUN`",
        )
    if unused := {"lora_rank", "beta", "replay"} & (settings or {}).keys():
        raise BadConfig(
            f"{min(unused)} is for tuning, and {tokens.ref} is text", hint="name tokens of conversations: docs/chat.md"
        )
    name = check_name(name or preset_name)
    if parent is None:
        preset = resolve_preset(preset_name, steps, minutes, settings)
        fitted = config.resolve_vocab_size(preset.model, tokens.manifest.require_counts("vocab_size")["vocab_size"])
        preset = dataclasses.replace(preset, model=fitted)
        return TrainPlan(name, preset_name, preset, tokens, given=frozenset(settings or ()))
    require_same_tokenizer(tokens, parent)
    network = parent.manifest.option("model", GPTConfig)
    preset = dataclasses.replace(presets.get_preset(preset_name), model=network, family=network.family)
    preset = override_preset(preset, steps, minutes, settings)
    require_same_network(preset.model, network, parent)
    if name == parent.manifest.name:
        raise BadConfig(f"the run would replace {name}, which it starts from", hint="give it another --name")
    return TrainPlan(name, preset_name, preset, tokens, parent.as_input("parent"), parent.path, weights_only=True)


def kind_of(tokens: Artifact) -> str:
    """Return "chat" for tokens of conversations, "preferences" for those of pairs of answers, "" for text."""
    return str(tokens.manifest.options.get("chat", ""))


def require_same_tokenizer(tokens: Artifact, parent: Artifact) -> None:
    """Raise BadConfig unless the tokens have the tokenizer of a parent run."""
    if tokens.manifest.tokenizer != parent.manifest.tokenizer:
        raise BadConfig(
            f"{tokens.ref} has the tokenizer {tokens.manifest.tokenizer}, {parent.ref} {parent.manifest.tokenizer}",
            hint=f"`tokenize` the text with --tokenizer {open_tokenizer(parent).name or 'of the run'}",
        )


def make_auto_plan(
    root: Path,
    tokens: Artifact,
    name: str,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> tuple[TrainPlan, Resolved]:
    """Plan the run `name` with the preset that `resolve_auto` chooses, and return both.

    `steps`, `minutes` and `settings` override the choice, `steps` also its limit of epochs.
    """
    resolved, overrides = resolve_auto(root, tokens, name, minutes, device), dict(settings or {})
    if steps is None and not {"steps", "minutes"} & overrides.keys():
        minutes = resolved.minutes
    limit = {"epochs": 0.0} if steps is not None else {}
    overrides = {**resolved.settings, **limit, **overrides}
    plan = make_plan(tokens, resolved.preset_name, name=name, steps=steps, minutes=minutes, settings=overrides)
    return plan, resolved


def require_same_network(model: GPTConfig, network: GPTConfig, parent: Artifact) -> None:
    """Raise BadConfig unless `model` is the parent's network, except for dropout, a shorter block and n-grams."""
    comparable = dataclasses.replace(model, **{field: getattr(network, field) for field in _CHANGEABLE})
    if changes := config.differences(comparable, network):
        raise BadConfig(f"the network of {parent.ref} cannot change: {'; '.join(changes)}", hint="drop that --set")
    if model.block_size > network.block_size:
        raise BadConfig(
            f"block_size must be at most {network.block_size:,}, that of {parent.ref}, got {model.block_size:,}",
            hint="drop --set block_size=…, or make it smaller",
        )


def identify(plan: TrainPlan, ended: int = 0) -> Identity:
    """Return the identity of a plan's run; `ended` is the last step if a signal ended it early."""
    options: dict[str, Any] = {
        "stage": SCHEMA,
        "model": config.identity(plan.preset.model),
        "train": config.identity(plan.preset.train),
    }
    if plan.weights_only:
        options["afresh"] = True
    if ended:
        options["ended"] = ended
    inputs = (plan.tokens.as_input("tokens"), *([plan.parent] if plan.parent else []))
    fingerprint = plan.tokens.manifest.tokenizer
    return Identity("runs", plan.name, options, inputs, fingerprint, ("torch",), code=code.state_of(CODE))


def read_config(folder: Path) -> Preset | None:
    """Return the resolved preset of a run or a draft; None if it has none that can be read."""
    try:
        return msgspec.json.decode((folder / CONFIG).read_bytes(), type=Preset)
    except (OSError, msgspec.DecodeError):
        return None


def write_config(
    folder: Path, preset_name: str, preset: Preset, tokenizer: Tokenizer, ngrams: NGrams | None = None
) -> None:
    """Write the files that resuming and sampling need: the tokenizer, the resolved preset and the text of `ngrams`.

    The field `settings` has the differences from the named preset; it is missing if there is no preset of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    fields = {"preset": preset_name, **asdict(preset)}
    if reference := presets.PRESETS.get(preset_name):
        fields["settings"] = settings_of(preset, reference)
    data = msgspec.json.encode(fields)
    files.write_file(folder / CONFIG, msgspec.json.format(data, indent=2))
    if ngrams:
        files.write_file(folder / NGRAMS, ngrams.to_bytes())
