"""Training, top to bottom: set up, then step after step; now and then an evaluation and a checkpoint; a curve.

Which blocks a step sees and what its dropout drops depend on the seed and the number of the step alone, so the state
of a training is that number and the tensors, and a run that was killed ends in the weights of one that was not.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model import device as devices
from model.generation import engine as generate
from model.generation import sampling
from model.runs import checkpoint
from model.runs import plan as runs_plan
from model.runs.checkpoint import Saved, State
from model.runs.plan import Plan
from model.runs.run import CHECKPOINTS, Report, Result
from model.training import baselines as references
from model.training import dataloader as batches
from model.training import estimate as preflight
from model.training import finish as outcome
from model.training import resume as beginning
from model.training.distributed import World
from model.training.evaluate import Evaluation, evaluate, validation_set
from model.training.learner import Learner, Step
from model.training.lr_schedule import Schedule
from model.training.metrics import Metrics
from pipeline.errors import StorageFailed, TrainingDiverged, TryAgain
from pipeline.runtime import signals as stop
from pipeline.store import artifact, files
from pipeline.tokens import store as tokens

_LOG_SECONDS = 10.0
_CHECKPOINT_SECONDS = 300.0
_EVALUATION_SHARE = 0.1  # of the time, of a training by the clock
_BAD_STEPS, _ROLLBACKS, _FAILED_SAVES = 3, 2, 3  # in a row: then roll back; then give up
_SAMPLE_TOKENS = 48
ANNEALED = "annealed"  # below the draft's scratch


def fit(
    folder: Path,
    planned: Plan,
    *,
    device: str,
    resume: bool,
    report: Report,
    anneal: bool = False,
    stopped: threading.Event | None = None,
    world: World | None = None,
) -> Result:
    """Train the plan's model in `folder`, the draft of its run, and write there all that a run holds.

    `stopped` ends it like a signal. Raises TryAgain when it was ended (everything is saved), or Annealed where that is
    asked for; TrainingDiverged when its numbers stay no numbers.
    """
    world = world or World()
    said = report if world.leads else _unheard
    training = Training(folder, planned, devices.pick(device), said, world, resume=resume)
    if world.leads:
        runs_plan.begun(folder, planned, training.store.tokenizer)
    training.announce()
    written = folder if world.leads else None
    with stop.asked(stopped) as ended, Metrics(written, training.recorded, board=planned.tensorboard) as rows:
        training.run(rows, ended, anneal=anneal)
    return outcome.ended(training)


@dataclass
class Sums:
    """Of the steps since the last row of the metrics: their losses and the norms of their gradients.

    On the device, where nobody waits for them before they are asked for.
    """

    steps: int
    loss: torch.Tensor
    norm: torch.Tensor

    def add(self, done: Step) -> None:
        self.steps += 1
        self.loss = self.loss + done.loss
        self.norm = self.norm + done.norm


class Training:
    """The state of a training while it runs: what learns, how far it is, what was evaluated and saved."""

    def __init__(
        self, folder: Path, planned: Plan, device: torch.device, report: Report, world: World, *, resume: bool = True
    ) -> None:
        self.folder, self.planned, self.device, self.report, self.world = folder, planned, device, report, world
        self.resume = resume
        model, self.config = planned.preset.model, planned.preset.train
        self.store = tokens.open_store(planned.tokens)
        self.sampler = batches.Sampler(
            self.store.train, model.block_size, self.config.seed, self.config.order, self.store.key
        )
        self.validation = validation_set(self.store, self.config.eval_bytes)
        first, rows = world.rows(self.config.batch_size)
        self.own = range(first, first + rows)
        # One answer for all processes: precision is a matter of time, and memory of the moment.
        self.forecast = world.tell(preflight.forecast(model, self.config, rows, device, world.size))
        if world.leads and not resume:
            for name in (CHECKPOINTS, artifact.SCRATCH):
                files.remove_tree(folder / name)
        self.steps_before = 0  # of the runs that it goes on from
        found = beginning.newest(folder, planned, world, report)
        how = found[0].execution if found else self.forecast.how
        if preflight.needed(model, self.config, how.precision, how.micro_batch, world.size) > self.forecast.free:
            how = replace(how, micro_batch=self.forecast.how.micro_batch)  # begun where there was more memory
        self.learner = Learner(model, self.config, device, how, rows, world, beginning.counts(planned, self.store))
        self._stand(found)
        self._evaluating = 0.0  # seconds
        self._failed_saves = 0  # in a row
        self._paced = (time.monotonic(), self.schedule.step)

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def _stand(self, found: tuple[State, Saved] | None) -> None:
        """Stand at that checkpoint; or at the beginning: afresh, or where an earlier run ended."""
        parent = beginning.parent(self.planned)
        if parent:
            self.steps_before = parent.steps_before + parent.steps
        self.since_row = self._sums_from(*(found[0].since_row if found else (0, 0.0, 0.0)))
        if found:
            state, saved = found
            self.learner.load(saved)
            self.skipped, self.rollbacks = state.skipped, state.rollbacks
            self.evaluations, self.share = state.evaluations, state.share
            self.schedule = Schedule(self.config, state.step, state.seconds, self.world.agree)
            self.report(f"going on from step {state.step:,} of an unfinished run")
        else:
            self.skipped = self.rollbacks = self.evaluations = 0
            self.share = 0.0
            self.schedule = Schedule(self.config, agree=self.world.agree)
            if parent:
                beginning.inherit(self.learner, self.planned, parent, self.report)
            else:
                self.learner.begin()
        self.recorded = self.schedule.step if found else -1  # the last step whose row of the metrics counts
        self._saved = self.schedule.step if found else -1  # the step of the last checkpoint
        self._paced = (time.monotonic(), self.schedule.step)
        self.schedule.start()
        self._bad = 0  # steps that were passed over, in a row
        self._load_batches()

    @property
    def data_step(self) -> int:
        """The number of the next step's batch: a run that goes on from another does not see its blocks again."""
        return self._first + self.skipped + self.schedule.step

    @property
    def _first(self) -> int:
        """The number of the first batch: afresh, these data are new to it."""
        return 0 if self.planned.afresh else self.steps_before

    def _load_batches(self) -> None:
        self.loader = batches.Loader(
            self.sampler,
            self.config.batch_size,
            self.device,
            step=self.data_step,
            first=self.own.start,
            count=len(self.own),
            resident=self.config.resident,
        )

    def announce(self) -> None:
        """Say what this training is, what its numbers will mean, and how long it will take by a few passes."""
        chosen = self.validation
        self.references = references.references(self.store, chosen)
        how, end_of_text = self.learner.how, self.store.tokenizer.end_of_text
        ids = batches.to_device(self.sampler.batch(0, how.micro_batch), self.device)
        seconds = preflight.seconds_of(lambda: self.learner.probe(ids, end_of_text), self.device)
        seconds *= math.ceil(len(self.own) / how.micro_batch)
        plan = preflight.lines(self.planned, len(self.store.train), self.forecast, how, self.device, seconds)
        for line in (*plan, preflight.scale(self.references)):
            self.report(line)

    def run(self, rows: Metrics, stopped: threading.Event, *, anneal: bool = False) -> None:
        """Train to the end of the schedule. Raises TryAgain, with everything saved, when `stopped` is set before."""
        self.metrics = rows
        self.schedule.start()
        self._told = self._checkpointed = self.world.agree(time.monotonic())
        self._paced = (time.monotonic(), self.schedule.step)
        self.learner.model.train()
        while True:
            with self.schedule.paused():
                self._between(stopped)
                if not (self._ended or self.schedule.annealing) and self.world.any(stopped.is_set()):
                    self._end_early(anneal=anneal)
            if self._ended:
                break
            self._step()
        self.loader.close()

    @property
    def _ended(self) -> bool:
        """By the clock too there is one step at least, however long the first evaluation took."""
        return self.schedule.done >= 1 and self.schedule.step > 0

    @property
    def _due(self) -> int:
        """How many evaluations there should have been by now: one before the first step, the last one at the end."""
        config = self.config
        wanted = config.evaluations if config.minutes else min(config.evaluations, max(config.steps // 10, 1))
        return 1 + math.floor(min(self.schedule.done, 1.0) * wanted)

    def _between(self, stopped: threading.Event) -> None:
        """Between two steps: evaluate and save, or save, or say how it goes, each when it is due."""
        now, due = self.world.agree(time.monotonic()), self._due
        if due > self.evaluations and (self._ended or self.schedule.step == 0 or self._can_afford()):
            loss = self._evaluate(threading.Event() if self._ended else stopped)
            if loss is None:
                return  # it is made when training goes on, or comes by here again
            self.evaluations = due
            if self.schedule.step:
                self._save(loss, last=self._ended)
            self._told = self._checkpointed = self.world.agree(time.monotonic())
        elif now - self._checkpointed > _CHECKPOINT_SECONDS:
            self._checkpointed = now
            self._save(None)
        elif now - self._told > _LOG_SECONDS:
            self._told = now
            self._look()

    def _step(self) -> None:
        seed = (self.config.seed << 32) + self.data_step
        self.share = self.schedule.apply(self.learner.optimizers)
        done = self.learner.step(next(self.loader), seed, self.schedule.step, self.store.tokenizer.end_of_text)
        self.schedule.advance()
        if done.culprit:
            self._pass_over(done)
        else:
            self._bad = 0
            self.since_row.add(done)

    def _pass_over(self, done: Step) -> None:
        """No step was taken. After three in a row these data are passed by."""
        step = self.schedule.step
        self._bad += 1
        self.report(f"warning: step {step:,} passed over: loss {float(done.loss):.4g}, {done.culprit} not finite")
        self.metrics.event("passed over", step=step, loss=str(float(done.loss)), cause=done.culprit)
        if self._bad >= _BAD_STEPS:
            self._roll_back(f"the {done.culprit}")

    def _roll_back(self, what: str) -> None:
        """`what` is no number: go back to the last checkpoint, and past the data since; the third time, give up."""
        step, reached, rollbacks = self.schedule.step, self.data_step, self.rollbacks + 1
        if rollbacks > _ROLLBACKS or self.schedule.annealing:
            raise self._diverged(what)
        self.report(f"warning: {what} is no finite number at step {step:,}: rolling back")
        self.metrics.event("rolled back", step=step, cause=what)
        self.loader.close()
        self._stand(beginning.newest(self.folder, self.planned, self.world, self.report))
        self.metrics.back_to(self.recorded)
        self.rollbacks, self.skipped = rollbacks, reached - self._first - self.schedule.step
        self.loader.close()
        self._load_batches()

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what} is no finite number at step {self.schedule.step:,}; the last checkpoint was kept",
            hint=f"try a smaller --set learning_rate=… than {self.config.learning_rate:g}",
        )

    def _can_afford(self) -> bool:
        """By the clock, evaluations may take a tenth of the time: a slow one is then made less often."""
        spent = self._evaluating <= _EVALUATION_SHARE * self.schedule.seconds
        return not self.config.minutes or bool(self.world.agree(spent))

    def _evaluate(self, stopped: threading.Event) -> float | None:
        """Measure, record and report; the validation loss, None when a signal came meanwhile, or it is no number."""
        start, pace = time.monotonic(), self._pace()
        with self.learner.averaged() as model:
            precision = self.learner.how.precision
            ends = self.store.tokenizer.end_of_text if self.config.document_mask else None
            found = evaluate(model, self.validation, self.device, precision, self.world, stopped.is_set, ends)
            if found is not None and math.isfinite(found.loss):
                self._sample()
        if found is None:
            return None
        self._evaluating += time.monotonic() - start
        if not math.isfinite(found.loss):
            self._roll_back("the validation loss")
            return None
        loss = self._record(found)
        shown = f"loss {loss:.3f}  " if loss is not None else ""
        self.report(
            f"{self.schedule}  {shown}validation {found.loss:.3f} nats/token, {found.bits_per_char:.3f} bits/char{pace}"
        )
        self._paced = (time.monotonic(), self.schedule.step)
        return found.loss

    def _sample(self) -> None:
        """Go on from how the validation text begins, so that a person sees what the numbers mean."""
        if self.world.size > 1 or self.metrics.folder is None:  # with FSDP one process alone cannot
            return
        tokenizer, prompt = self.store.tokenizer, self.validation.ids[1:9].tolist()
        options = sampling.SampleOptions(max_tokens=_SAMPLE_TOKENS, top_k=50)
        made = generate.sample(self.learner.model, tokenizer, [(tokenizer.decode(prompt), prompt)], options)[0]
        self.learner.model.train()
        self.metrics.sample(self.schedule.step, made.prompt, made.text)

    def _look(self) -> None:
        """Between evaluations: what training itself says."""
        loss = self._record()
        if loss is not None:
            self.report(f"{self.schedule}  loss {loss:.3f}{self._pace()}")

    def _record(self, found: Evaluation | None = None) -> float | None:
        """A row of the metrics. The mean loss since the last one, None where there was no step."""
        steps, *sums = self._sums()
        loss, norm = (each / steps if steps else None for each in sums)
        if steps or found:
            self.metrics.add(self.schedule, self.tokens, self._rate, loss, norm, found)
        self.since_row = self._sums_from(0, 0.0, 0.0)
        return loss

    def _sums_from(self, steps: int, loss: float, norm: float) -> Sums:
        return Sums(steps, *(torch.tensor(each, dtype=torch.float32, device=self.device) for each in (loss, norm)))

    def _sums(self) -> tuple[int, float, float]:
        """Steps since the last row, the sums of their losses, of all processes' rows, and of the gradients' norms."""
        since = self.since_row
        return since.steps, self.world.total(float(since.loss)) / self.world.size, float(since.norm)

    def _save(self, loss: float | None, *, last: bool = False) -> None:
        """Checkpoint now, with the validation loss if it was just measured; keep the last two and the best one.

        What the disk refuses is told, and tried again the next time; the third time in a row, or at the end, it is
        an error.
        """
        if loss is None and self._saved == self.schedule.step:
            return  # it stands, perhaps with its evaluation
        if culprit := self.learner.not_finite():
            self._roll_back(f"the weight {culprit}")
            return
        saved, since_row, failed = self.learner.saved(), self._sums(), None
        if self.world.leads:
            state = State(
                self.schedule.step,
                self.schedule.seconds,
                loss,
                self.planned.preset.model,
                self.config,
                self.learner.how,
                self.skipped,
                self.rollbacks,
                self.evaluations,
                self.share,
                since_row,
            )
            try:
                self.metrics.sync()
                checkpoint.save(self.checkpoints, state, saved)
                kept = checkpoint.steps(self.checkpoints)[:2]
                checkpoint.keep(self.checkpoints, {*kept, checkpoint.best(self.checkpoints)})
            except (OSError, StorageFailed) as error:
                failed = error
                files.remove_temporaries(self.checkpoints, below=False)
        if not self.world.any(failed is not None):
            self._failed_saves, self._saved = 0, self.schedule.step
            return
        self._failed_saves += 1
        self.report(f"warning: no checkpoint of step {self.schedule.step:,}: {failed}")
        if last or self._failed_saves >= _FAILED_SAVES:
            raise failed or StorageFailed("the first process could not save a checkpoint", hint="see what it says")

    def _end_early(self, *, anneal: bool) -> None:
        """A signal came: save, and stop there; or bring the weights to rest, for a run of their own."""
        self._save(None, last=True)
        if not (anneal and self.schedule.step):
            raise TryAgain(
                f"stopped by a signal at step {self.schedule.step:,}; everything is saved",
                hint=f"the same command{'' if self.resume else ' without --no-resume'} goes on from there",
            )
        self.report("stopped by a signal: the rates fall to zero, then the run is published; a second one ends it now")
        self.schedule.anneal()
        self.folder = self.folder / artifact.SCRATCH / ANNEALED
        if self.world.leads:
            files.remove_tree(self.folder)

    @property
    def tokens(self) -> int:
        return self.schedule.step * self.config.batch_size * self.planned.preset.model.block_size

    @property
    def _rate(self) -> float:
        return self.share * self.config.learning_rate

    def _pace(self) -> str:
        """Tokens per second since it was last asked for, evaluations not counted."""
        now, (then, step) = time.monotonic(), self._paced
        self._paced = (now, self.schedule.step)
        if self.schedule.step == step:
            return ""
        each = self.config.batch_size * self.planned.preset.model.block_size
        return f"  {(self.schedule.step - step) * each / max(now - then, 1e-9):,.0f} tokens/s"


def _unheard(line: str) -> None:
    """What the processes beside the first would say, it says."""
