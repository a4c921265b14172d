"""Evaluations during a training: when they are due, what they may cost, and the text that is sampled at each."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.generation import engine
from model.generation.engine import Sample
from model.generation.sampling import SampleOptions
from model.generation.session import encode
from model.network.gpt import GPT
from model.runs.run import Report
from model.training.distributed import World
from model.training.evaluate import Evaluation, ValidationSet, evaluate
from model.training.learner import Learner
from model.training.lr_schedule import LRSchedule
from model.training.metrics import Metrics, evaluations
from model.training.tuning.evaluation import AnyEvaluation, HeldOutAnswers, HeldOutPairs
from pipeline.tokenizers import Tokenizer
from pipeline.tokens.store import TokenStore

_MAX_TIME_FRACTION = 0.1  # of a training whose length is in minutes
_MIN_EVALUATIONS = 6  # after the first, even in a training of few steps
_MIN_SECONDS = 60.0  # time limit of these six, even in a shorter training
_PROMPT_TOKENS, _SAMPLE_TOKENS = 8, 48
_PATIENCE = 2  # evaluations without improvement
_RISE = 1.02  # times the best loss


@dataclass(frozen=True)
class Rise:
    """A rise of the validation loss, in `unit`: the best step and its loss, the last step and its loss."""

    best_step: int
    best: float
    step: int
    loss: float
    unit: str = "nats per token"

    def __str__(self) -> str:
        percent = 100 * (self.loss / self.best - 1)
        return (
            f"validation rose by {percent:.1f} %, from {self.best:.3f} {self.unit} at step {self.best_step:,} "
            f"to {self.loss:.3f} at step {self.step:,}"
        )


def find_rise(losses: Sequence[tuple[int, float]], patience: int) -> Rise | None:
    """Return the rise if the best of these evaluations, (step, loss), was `patience` before the last one or earlier.

    The last loss must be at least 2 % above the best. Step 0 does not count: it has no checkpoint.
    """
    trained = [(step, loss) for step, loss in losses if step]
    best = min(range(len(trained)), key=lambda index: (trained[index][1], -index), default=0)
    if len(trained) - 1 - best < patience or trained[-1][1] < _RISE * trained[best][1]:
        return None
    return Rise(*trained[best], *trained[-1])


class Evaluator:
    """Scores the validation set at regular points of the schedule: before the first step, at the end and between.

    Without a validation set (None) it only writes samples. `count` is the number of evaluations so far, including those
    before a resume; `sample` is the text that was written at the last one, if any. `prompt` is a text to continue, and
    its ids.
    """

    def __init__(
        self,
        validation: ValidationSet | HeldOutAnswers | HeldOutPairs | None,
        prompt: tuple[str, list[int]],
        tokenizer: Tokenizer,
        learner: Learner,
        schedule: LRSchedule,
        world: World,
    ) -> None:
        self.validation = validation
        self.count = 0
        self.sample: Sample | None = None
        self._prompt = prompt
        self._tokenizer, self._learner, self._schedule, self._world = tokenizer, learner, schedule, world
        self._has_warned = False
        self._seconds = 0.0  # spent evaluating by this process
        self._evaluated_at = 0.0  # progress of the schedule at the last evaluation by this process

    @property
    def due(self) -> bool:
        """True if the next evaluation should be made now."""
        if self._scheduled <= self.count:
            return False
        return self._schedule.finished or self._schedule.step == 0 or self._is_affordable()

    @property
    def _scheduled(self) -> int:
        """Number of evaluations that should have been made by now."""
        config = self._learner.config
        total = config.evaluations
        if not config.minutes:
            total = min(total, max(config.steps // 10, _MIN_EVALUATIONS))
        passed = math.floor(min(self._schedule.progress, 1.0) * total)
        if not self._schedule.finished:  # compiling may have used up the time before the first step
            passed = min(passed, max(total - 1, 0))
        return 1 + passed

    def _is_affordable(self) -> bool:
        """Return True if evaluations took at most a tenth of the time of a training whose length is in minutes.

        If the last one is a sixth of the schedule ago, the limit is all of that time, or a minute if that is more.
        """
        seconds = self._schedule.seconds
        is_overdue = self._schedule.progress - self._evaluated_at >= 1 / _MIN_EVALUATIONS
        is_affordable = self._seconds <= (max(seconds, _MIN_SECONDS) if is_overdue else _MAX_TIME_FRACTION * seconds)
        return not self._learner.config.minutes or bool(self._world.broadcast(is_affordable))

    def ends_early(self, metrics: Metrics, report: Report) -> str:
        """Return why the training should end now, "" if it should not. With a length in steps, only warn."""
        config, rise = self._learner.config, None
        if metrics.folder:
            rise = find_rise(evaluations(metrics.folder), config.patience or _PATIENCE)
        if rise and isinstance(self.validation, HeldOutPairs):
            rise = replace(rise, unit="nats per pair")
        if rise and not (config.patience or config.minutes):
            if not self._has_warned:
                report(f"warning: {rise}: more text or --set dropout=… helps; --patience {_PATIENCE} ends it early")
            self._has_warned, rise = True, None
        reason: str = self._world.broadcast_object(str(rise or ""))
        return reason

    def evaluate(self, metrics: Metrics, stopped: threading.Event) -> AnyEvaluation | None:
        """Score the validation set and write a sample, with the average of the weights if there is one.

        Return None if `stopped` was set meanwhile; the evaluation is then still due. Also return None without a
        validation set. There is no sample if the loss is not finite.
        """
        start, learner = time.monotonic(), self._learner
        self.sample, evaluation = None, None
        with learner.averaged() as model:
            if self.validation:
                evaluation = self._score(model, self.validation, stopped)
                if evaluation is None:
                    return None
            if evaluation is None or math.isfinite(evaluation.loss):
                self._write_sample(metrics)
        validation, is_last = self.validation, self._schedule.finished
        if is_last and isinstance(evaluation, Evaluation) and isinstance(validation, ValidationSet):
            metrics.write_losses(self._schedule.step, validation.ids[1:], evaluation)
        self._seconds += time.monotonic() - start
        self.count, self._evaluated_at = self._scheduled, self._schedule.progress
        return evaluation

    def _score(
        self, model: GPT, validation: ValidationSet | HeldOutAnswers | HeldOutPairs, stopped: threading.Event
    ) -> AnyEvaluation | None:
        learner = self._learner
        arguments = (learner.device, learner.execution.precision, self._world, stopped.is_set)
        if not isinstance(validation, ValidationSet):
            return validation.evaluate(model, *arguments)
        eos = self._tokenizer.end_of_text if learner.config.document_mask else None
        return evaluate(model, validation, *arguments, eos)

    def _write_sample(self, metrics: Metrics) -> None:
        """Generate a sample with a separate random generator. A failure is recorded and does not end the training."""
        if self._world.size > 1 or metrics.folder is None:  # one process alone cannot run a model sharded by FSDP
            return
        model, options = self._learner.model, SampleOptions(max_tokens=_SAMPLE_TOKENS)
        try:
            (self.sample,) = engine.sample(model, self._tokenizer, [self._prompt], options)
        except Exception as error:  # noqa: BLE001 - the training is worth more than its sample
            metrics.event("no sample", step=self._schedule.step, cause=str(error))
            return
        finally:
            model.train()
        metrics.sample(self._schedule.step, self.sample.prompt, self.sample.text)


def sample_prompt(store: TokenStore, text: str, report: Report) -> tuple[str, list[int]]:
    """Return the text to continue at each evaluation, and its ids; without one, the beginning of the validation text.

    Characters that the tokenizer does not know are reported. Raises BadConfig or BadData for a text that cannot be
    encoded.
    """
    if text:
        return text, encode(store.tokenizer, text, report)
    ids = (store.val if len(store.val) else store.train).read(0, _PROMPT_TOKENS).tolist()
    return store.tokenizer.decode(ids), ids
