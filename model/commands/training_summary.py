"""The lines at the end of a training: losses, a verdict against the baselines, and the next commands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from model.presets import CHOSEN_EPOCHS
from pipeline.commands.console import Outcome
from pipeline.commands.options import outcome_of
from pipeline.runtime.terminal import counted
from pipeline.tokens.split import FEWEST_CHARACTERS

if TYPE_CHECKING:
    from model.runs.run import Result
    from pipeline.store.artifact import Artifact, BuildResult

BASELINE_NAMES = {
    "uniform": "random guesses",
    "unigram": "letter frequency",
    "bigram": "counting pairs",
    "zstd": "the compressor zstd",
    "ngram": "counting n-grams",
}
_EQUAL = 0.03  # relative difference of scores that count as equal
_WORSE = 1.01  # times the best score: a worse last score shows overfitting
_PUNCTUATION = " \"'“”‘’「」『』，。、,.;:!?"


def training_outcome(built: BuildResult) -> Outcome:
    """Return the outcome of a training: counts, losses, a verdict, the path of its curve and the next commands."""
    import msgspec

    from model.runs import run

    result, name = run.read_result(built.artifact.path), built.artifact.manifest.name
    outcome = outcome_of(built, ("steps", "tokens", "parameters"))
    fields = msgspec.structs.asdict(result)
    outcome.extra |= {key: fields[key] for key in fields if key not in ("seconds", "last", "best")}
    outcome.extra["checkpoint"] = str(built.artifact.path / run.CHECKPOINTS / result.best)
    outcome.extra["loss_curve"] = str(built.artifact.path / "loss.png")
    outcome.lines += [
        *_loss_lines(result),
        *run.describe_tuning(result),
        *(f"verdict: {text}" for text in [verdict(result)] if text),
        f"loss curve: {outcome.extra['loss_curve']}",
        *([] if result.task else [f"next: inkstone sample {name}{_prompt(built.artifact)}"]),
        f"{'next:' if result.task else '     '} inkstone serve {name}",
    ]
    if longer_may_help(result):
        outcome.lines.append(f"      inkstone train --continue {name} --minutes {minutes(result)}")
    add_promotion(outcome, built.artifact)
    return outcome


def verdict(result: Result) -> str:
    """Compare the best bits per character with the baselines, and say what would help; "" without baselines."""
    bits, scores = result.best_bits_per_char, result.baselines
    if bits is None or not scores:
        return ""
    if 0 < result.val_characters < FEWEST_CHARACTERS:
        return (
            f"none: {counted(result.val_characters, 'characters')} of validation text are too few to compare by; hold "
            "out more (`tokenize --val-fraction 0.1`, in a recipe `val_fraction` in [tokenize])"
        )
    lowest = min(scores, key=scores.__getitem__)
    equal = [name for name, score in scores.items() if abs(bits - score) <= _EQUAL * score]
    beaten = [name for name, score in scores.items() if bits < score]
    best = min(equal or beaten, key=scores.__getitem__, default="uniform")
    relation = "about as good as" if equal else "better than" if beaten else "worse than"
    text = f"{bits:.2f} bits per character, {relation} {BASELINE_NAMES[best]} ({scores[best]:.2f})"
    if best != lowest:
        text += f", not as good as {BASELINE_NAMES[lowest]} ({scores[lowest]:.2f})"
    if result.ended_early:
        return f"{text}; its validation loss rose, so more text helps, and longer training does not"
    if (result.bits_per_char or 0.0) > _WORSE * bits:
        return f"{text}; it was best before the end, so more text helps, and longer training does not"
    if best == lowest and not equal:
        return text
    return f"{text}: train longer" if longer_may_help(result) else f"{text}: more text helps"


def longer_may_help(result: Result) -> bool:
    """Return False if the validation loss rose, or the training has the epochs at which `presets.choose` ends it."""
    return not result.ended_early and result.epochs < CHOSEN_EPOCHS


def minutes(result: Result) -> int:
    """Return the length of a training in whole minutes, at least 1."""
    return max(math.ceil(result.seconds / 60), 1)


def add_promotion(outcome: Outcome, run: Artifact) -> None:
    """Add to the outcome whether the run is the current one of its name, and the reason if it was set aside."""
    from pipeline.store.generations import current_key, read_run_info

    outcome.extra["current"] = current_key(run.path.parent) == run.path.name
    if not outcome.extra["current"] and (reason := read_run_info(run.path).reason):
        outcome.lines.append(f"{run.ref} is {reason}; kept. `--accept-worse` makes it current")


def _loss_lines(result: Result) -> list[str]:
    if result.val_loss is None:
        return ["validation: none, since the tokens have no validation part; the last checkpoint is the best"]
    early = [f"ended early from its best checkpoint: {result.ended_early}"] if result.ended_early else []
    if result.task:  # its numbers have lines of their own
        return early
    return [
        *early,
        f"validation {result.first_bits_per_char:.3f} → {result.bits_per_char:.3f} bits per character "
        f"(best {result.best_bits_per_char:.3f}), {result.val_loss:.3f} nats per token",
    ]


def _prompt(run: Artifact) -> str:
    """Return the prompt of the run's last sample as an argument of `sample`, or "" if a shell would change it."""
    import json

    from model.training.metrics import SAMPLES

    lines = run.file(SAMPLES).read_text(encoding="utf-8").splitlines() if run.file(SAMPLES).is_file() else []
    prompt = " ".join(json.loads(lines[-1])["prompt"].split()).strip(_PUNCTUATION) if lines else ""
    return f' "{prompt}"' if prompt and not set(prompt) & set('"$`\\!') else ""
