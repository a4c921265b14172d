"""The report of `train` at its end: losses, the curve and the next command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.commands.console import Outcome
from pipeline.commands.options import outcome_of

if TYPE_CHECKING:
    from model.runs.run import Result
    from pipeline.store.artifact import Artifact, BuildResult

_PUNCTUATION = " \"'“”‘’「」『』，。、,.;:!?"


def training_outcome(built: BuildResult) -> Outcome:
    """Return the outcome of a training: its counts, its losses, the path of its curve and the next command."""
    import msgspec

    from model.runs import run

    result = run.read_result(built.artifact.path)
    outcome = outcome_of(built, ("steps", "tokens", "parameters"))
    fields = msgspec.structs.asdict(result)
    outcome.extra |= {key: fields[key] for key in fields if key not in ("seconds", "last", "best")}
    outcome.extra["checkpoint"] = str(built.artifact.path / run.CHECKPOINTS / result.best)
    outcome.extra["loss_curve"] = str(built.artifact.path / "loss.png")
    outcome.lines += [
        *_loss_lines(result),
        f"loss curve: {outcome.extra['loss_curve']}",
        f"next: inkstone sample {built.artifact.manifest.name}{_prompt(built.artifact)}",
    ]
    return outcome


def _loss_lines(result: Result) -> list[str]:
    if result.bits_per_char is None:
        return ["validation: none, since the tokens have no validation part; the last checkpoint is the best"]
    return [
        f"validation {result.first_bits_per_char:.3f} → {result.bits_per_char:.3f} bits per character "
        f"(best {result.best_bits_per_char:.3f}), {result.val_loss:.3f} nats per token"
    ]


def _prompt(run: Artifact) -> str:
    """Return the prompt of the run's last sample as an argument of `sample`, or "" if a shell would change it."""
    import json

    from model.training.metrics import SAMPLES

    lines = run.file(SAMPLES).read_text(encoding="utf-8").splitlines() if run.file(SAMPLES).is_file() else []
    prompt = " ".join(json.loads(lines[-1])["prompt"].split()).strip(_PUNCTUATION) if lines else ""
    return f' "{prompt}"' if prompt and not set(prompt) & set('"$`\\!') else ""
