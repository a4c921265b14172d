"""The training loop, top to bottom: set up, take steps, evaluate and save between them, and finish.

The batch and the dropout of a step depend on the seed and the step number alone. The state of a training is therefore
that number and the tensors, and a run that was killed and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from model import device as devices
from model.runs.checkpoint import CheckpointTensors, TrainState
from model.runs.plan import Annealed, TrainPlan, write_config
from model.runs.run import CHECKPOINTS, Report, Result
from model.training import estimate, trial
from model.training.baselines import Baselines
from model.training.checkpointer import Checkpointer
from model.training.dataloader import Loader, is_resident, to_device, tokens_bytes
from model.training.distributed import World
from model.training.evaluator import Evaluator
from model.training.finish import copy_records, finish, make_result
from model.training.learner import Learner, StepResult
from model.training.lr_schedule import LRSchedule
from model.training.metrics import Metrics, OnRow, RunningSums
from model.training.progress import Every, ProgressReporter, Watch
from model.training.resume import count_ngrams, count_tokens, load_parent, open_parent
from model.training.tuning.evaluation import AnyEvaluation
from model.training.tuning.task import open_task
from pipeline.errors import TrainingDiverged, TryAgain
from pipeline.runtime import signals
from pipeline.store import artifact, files
from pipeline.tokens.store import open_store

_RESUMING = "resuming from step {:,} of an unfinished run"
_LOG_SECONDS = 10.0
_MAX_BAD_STEPS, _MAX_ROLLBACKS = 3, 2  # bad steps in a row
ANNEALED = "annealed"  # in the scratch folder of the draft


def fit(
    draft: Path,
    plan: TrainPlan,
    *,
    device: str,
    resume: bool,
    report: Report,
    anneal: bool = False,
    stopped: threading.Event | None = None,
    watch: Watch | None = None,
    on_row: OnRow | None = None,
    world: World | None = None,
) -> Result:
    """Train the model of a plan and write all files of its run into `draft`.

    `watch` is called about every second, in place of reporting steps and evaluations as lines; `on_row` with the
    numbers of each row of the metrics. A signal, or setting `stopped`, ends training early: everything is saved and
    TryAgain raised. With `anneal`, the learning rates then fall to zero first, the run is written into a separate
    folder and the main process raises Annealed. Raises TrainingDiverged after two rollbacks from non-finite numbers.
    """
    world = world or World()
    report = report if world.is_main else lambda line: None
    picked = devices.pick_device(device, report)
    with devices.out_of_memory_refused(picked):
        trainer = Trainer(draft, plan, picked, report, world, resume=resume, watch=watch if world.is_main else None)
    tokenizer, ngrams = trainer.store.tokenizer, trainer.learner.model.ngrams
    if world.is_main:
        write_config(draft, plan.preset_name, plan.preset, tokenizer, ngrams)
    baselines = trainer.announce()
    folder, saved_step = draft if world.is_main else None, trainer.checkpointer.saved_step
    columns = trainer.task.columns
    metrics_file = Metrics(folder, saved_step, picked, board=plan.tensorboard, columns=columns, on_row=on_row)
    with signals.stop_on_signals(stopped) as stop, metrics_file as metrics, devices.out_of_memory_refused(picked):
        metrics.event("plan", **trainer.planned, prompt=plan.prompt)
        trainer.run(metrics, stop, anneal=anneal)
    result: Result = world.broadcast_object(trainer.result(draft) if world.is_main else None)
    if world.is_main:
        if trainer.folder != draft:
            write_config(trainer.folder, plan.preset_name, plan.preset, tokenizer, ngrams)
            copy_records(draft, trainer.folder)
        finish(trainer.folder, result, baselines, f"{plan.name} ({plan.preset_name})")
        if trainer.folder != draft:
            raise Annealed(trainer.folder, result)
    return result


class Trainer:
    """State and loop of one training.

    `checkpointer` saves, `evaluator` evaluates, `schedule` has the progress and the learning rates. `folder` becomes
    the run: the draft, or a separate folder after a signal with `anneal`.
    """

    def __init__(
        self,
        draft: Path,
        plan: TrainPlan,
        device: torch.device,
        report: Report,
        world: World,
        *,
        resume: bool = True,
        watch: Watch | None = None,
    ) -> None:
        model, self.config = plan.preset.model, (config := plan.preset.train)
        self.folder, self.preset, self.preset_name, self._draft = draft, plan.preset, plan.preset_name, draft
        self.device, self.report, self.world, self._resume = device, report, world, resume
        self.store = store = open_store(plan.tokens, is_intact=world.size > 1)  # each node has checked its own
        self._parent = world.from_main(lambda: open_parent(plan))
        self.task, self.sampler = (task := open_task(store, plan, device, world, report)), task.sampler
        first, count = world.rows(self.config.batch_size)
        self.rows = range(first, first + count)
        self.is_resident = not task.tuning and is_resident(config.resident, store.train, device)
        needed = task.bytes + tokens_bytes(store.train, model, device, is_resident=self.is_resident)
        self.execution_plan = estimate.choose_together(model, task.with_mask(config), count, device, world, needed)
        if world.is_main and not resume:
            for name in (CHECKPOINTS, artifact.SCRATCH):
                files.remove_tree(draft / name)
        self.checkpointer = Checkpointer(draft, plan.preset, world, report, threaded=device.type == "cuda")
        newest = self.checkpointer.load_newest()
        self.learner = self._build_learner(newest[0] if newest else None)
        self.learner.model.ngrams = count_ngrams(self.store, model, report)
        self.schedule = LRSchedule(self.config, world.broadcast, self.sampler.epoch(1, self.config.batch_size))
        self.evaluator = Evaluator(task.validation, task.prompt, store.tokenizer, self.learner, self.schedule, world)
        self.baselines: Baselines | None = None
        self._log_timer = Every(_LOG_SECONDS)
        self._progress = ProgressReporter(report, watch, self._step_tokens)
        self._from_scratch = plan.from_scratch
        self._restore(newest)
        self._load_batches()

    def _build_learner(self, state: TrainState | None) -> Learner:
        """Build the learner with the execution of a checkpoint; without one, for a first trial, not compiled."""
        model, plan, tuning = self.preset.model, self.execution_plan, self.task.tuning
        if state:
            execution = estimate.resumed_execution(plan, state, self.device, self.world.size, self.report)
        else:
            execution = replace(plan.execution, compiled=self.config.compile == "yes")
        self._may_compile = plan.execution.compiled and not (state and execution == state.execution)
        counts = count_tokens(self.store, model.vocab_size) if model.head_bias else None
        return Learner(model, self.config, self.device, execution, len(self.rows), self.world, counts, tuning)

    def _restore(self, saved: tuple[TrainState, CheckpointTensors] | None, message: str = _RESUMING) -> None:
        """Restore a checkpoint and report `message` with its step; without one, the parent run or initial weights."""
        if saved:
            state, tensors = saved
            self.learner.load(tensors)
            self.schedule.restore(state.step, state.seconds, state.share, state.cooldown)
            self.ended_early = state.ended_early
            self.skipped, self.rollbacks, self.evaluator.count = state.skipped, state.rollbacks, state.evaluations
            self.sums = RunningSums.on(self.device, *state.since_row)
            self.report(message.format(state.step))
        else:
            self.schedule.restore(step=0, seconds=0.0, applied_factor=0.0)
            self.skipped = self.rollbacks = self.evaluator.count = 0
            self.ended_early = ""
            self.sums = RunningSums.on(self.device)
            if self._parent:
                load_parent(self.learner, self._parent, self.report)
            else:
                if self._from_scratch:
                    self.report(f"starts from scratch: {self._from_scratch}")
                self.learner.initialise()
        self._bad_steps = 0  # in a row
        self._progress.restart(self.schedule)

    def _load_batches(self) -> None:
        self.loader = Loader(
            *(self.sampler, self.config.batch_size, self.device),
            step=self.data_step,
            first=self.rows.start,
            count=len(self.rows),
            resident="yes" if self.is_resident else "no",
        )

    @property
    def data_step(self) -> int:
        """Index of the next step's batch. A run that continues another one does not repeat its blocks."""
        return self._first_data_step + self.skipped + self.schedule.step

    @property
    def _first_data_step(self) -> int:
        return self._parent.steps if self._parent and not self._parent.weights_only else 0

    def announce(self, *, compiles: bool = True) -> Baselines | None:
        """Report the plan, the estimated time and the losses of simple baselines; return the baselines.

        There are none without a validation set. The network is compiled only with `compiles`.
        """
        self.baselines = self.task.baselines(self.store)
        if self.execution_plan.note:
            self.report(self.execution_plan.note)
        seconds, compiling = trial.measure_step(
            self.learner,
            lambda rows: to_device(self.sampler.batch(0, rows), self.device),
            *(self.store.tokenizer.end_of_text, self.report, self.schedule.max_steps),
            compiles=compiles and self._may_compile,
        )
        self.schedule.spend(compiling)
        self.planned = {"seconds_per_step": seconds, "bytes": self.execution_plan.bytes}
        lines = estimate.plan_lines(
            *(self.preset_name, self.preset, len(self.store.train), self.execution_plan),
            *(self.learner.execution, self.device, seconds, compiling),
            *self.task.epoch(self.config.batch_size),
        )
        for line in (*lines, *self.task.lines(self.baselines)):
            self.report(line)
        return self.baselines

    def run(self, metrics: Metrics, stopped: threading.Event, *, anneal: bool = False) -> None:
        """Train to the end of the schedule. Raises TryAgain, with everything saved, if `stopped` is set earlier."""
        self.metrics = metrics
        self._restart_timers()
        self.learner.model.train()
        self._end_early()
        while True:
            with self.schedule.paused():
                self._between_steps(stopped)
                is_ending = self.schedule.finished or self.folder != self._draft
                if not is_ending and self.world.any(stopped.is_set()):
                    self._stop(anneal=anneal)
            if self.schedule.finished:
                break
            self._step()
            while self._bad_steps and not self.schedule.finished:  # a checkpoint between them would not count them
                self._step()
        self.loader.close()

    def _clock(self) -> float:
        """Return the main process's clock in seconds, so that timers are due in all processes at once."""
        return self.world.broadcast(time.monotonic())

    def _restart_timers(self) -> None:
        clock = self._clock()
        for timer in (self.checkpointer.timer, self._log_timer):
            timer.restart(clock)

    def _between_steps(self, stopped: threading.Event) -> None:
        """Evaluate and save, or save, or report the training loss, whichever is due."""
        clock = self._clock()
        if self.evaluator.due:
            self._evaluate(threading.Event() if self.schedule.finished else stopped)
            self._end_early()
        elif self.checkpointer.timer.due(clock):
            self._save()
        elif self._log_timer.due(clock) and (loss := self._record()) is not None:
            self._progress.report(self.schedule, loss)
        self._progress.tick(self.schedule)

    def _step(self) -> None:
        step, seed = self.schedule.step, (self.config.seed << 32) + self.data_step
        self.schedule.apply(self.learner.optimizers)
        batch = (next(self.loader), seed, step, self.store.tokenizer.end_of_text, self.loader.prepare)
        result = trial.retried(self.learner, lambda: self.learner.step(*batch), self.report)
        self.schedule.advance()
        if result.culprit:
            self._skip(result)
        else:
            self._bad_steps = 0
            self.sums.add(result.loss, result.norm)

    def _skip(self, result: StepResult) -> None:
        """Count a step that left the weights unchanged; after three in a row, roll back and skip this data."""
        step, loss = self.schedule.step, float(result.loss)
        self._bad_steps += 1
        self.report(f"warning: step {step:,} skipped: loss {loss:.4g}, {result.culprit} not finite")
        self.metrics.event("passed over", step=step, loss=str(loss), cause=result.culprit)
        if self._bad_steps >= _MAX_BAD_STEPS:
            self._roll_back(f"the {result.culprit}")

    def _roll_back(self, culprit: str) -> None:
        """Return to the last checkpoint after a non-finite `culprit`, and skip the data since then.

        Raises TrainingDiverged the third time, and while the learning rates fall after a signal.
        """
        step, data_step, rollbacks = self.schedule.step, self.data_step, self.rollbacks + 1
        if rollbacks > _MAX_ROLLBACKS or self.folder != self._draft:
            raise TrainingDiverged(
                f"{culprit} is not finite at step {step:,}; the last checkpoint was kept",
                hint=f"try a smaller --set learning_rate=… than {self.config.learning_rate:g}",
            )
        self.report(f"warning: {culprit} is not finite at step {step:,}: rolling back")
        self.metrics.event("rolled back", step=step, cause=culprit)
        self.loader.close()
        self._restore(self.checkpointer.load_newest(), "back at step {:,}")
        self.metrics.back_to(self.checkpointer.saved_step)
        self.rollbacks, self.skipped = rollbacks, data_step - self._first_data_step - self.schedule.step
        self._load_batches()

    def _end_early(self) -> None:
        """Let the learning rates fall to zero from the best checkpoint on, if the validation loss has risen.

        The order makes a kill at any moment harmless: first the best checkpoint is saved with the fall, then later
        checkpoints are deleted, then later rows of the metrics.
        """
        if self.schedule.finished or self.schedule.annealing:
            return
        if not (reason := self.evaluator.ends_early(self.metrics, self.report)):
            return
        self.report(f"{reason}: the learning rates fall to zero from the best checkpoint on, then the training ends")
        self.metrics.event("ends early", step=self.schedule.step, cause=reason)
        self.loader.close()
        best = self.checkpointer.load_newest(best_only=True)
        assert best, "the best step has a checkpoint"
        self._restore(best, "back at step {:,}, the best checkpoint")
        if not self.schedule.annealing:
            self.schedule.anneal()
            self.ended_early = reason
        self._save(best[0].val_loss, required=True)
        self.checkpointer.delete_later(self.schedule.step)
        self.metrics.back_to(self.schedule.step)
        self._load_batches()

    def _evaluate(self, stopped: threading.Event) -> None:
        """Evaluate, record, report and save. Nothing is recorded if `stopped` is set meanwhile."""
        evaluation = self.evaluator.evaluate(self.metrics, stopped)
        if evaluation is None and self.evaluator.validation:
            return
        if evaluation and not math.isfinite(evaluation.loss):
            self._roll_back("the validation loss")
            return
        loss = self._record(evaluation)
        better_than = self.baselines.best_beaten(evaluation.loss) if self.baselines and evaluation else ""
        sample = self.evaluator.sample if self.schedule.step else None  # at the start it is noise
        self._progress.report(self.schedule, loss, evaluation, better_than, sample)
        if self.schedule.step:
            self._save(evaluation.loss if evaluation else None, required=self.schedule.finished)
        self._restart_timers()

    def _record(self, evaluation: AnyEvaluation | None = None) -> float | None:
        """Write a row of the metrics; return the mean loss since the last row, None if no step was taken."""
        steps, *totals = self.sums.totals(self.world)
        loss, norm = (total / steps if steps else None for total in totals)
        if steps or evaluation:
            self.metrics.add(self.schedule, self.schedule.step * self._step_tokens, loss, norm, evaluation)
        self.sums = RunningSums.on(self.device)
        return loss

    def _save(self, val_loss: float | None = None, *, required: bool = False) -> None:
        """Save a checkpoint, with the validation loss if it was just measured; roll back if a weight is not finite."""
        if self.checkpointer.saved_step == self.schedule.step and val_loss is None:  # waits, and frees the last copy
            return  # saved already, perhaps with its validation loss
        if weight := self.learner.not_finite():
            self._roll_back(f"the weight {weight}")
            return
        state = TrainState(
            step=self.schedule.step,
            seconds=self.schedule.seconds,
            val_loss=val_loss,
            model=self.preset.model,
            train=self.config,
            execution=self.learner.execution,
            skipped=self.skipped,
            rollbacks=self.rollbacks,
            evaluations=self.evaluator.count,
            share=self.schedule.applied_factor,
            cooldown=self.schedule.cooldown,
            ended_early=self.ended_early,
            since_row=self.sums.totals(self.world),
            device=devices.describe(self.device),
        )
        self.checkpointer.save(state, self.learner.state_tensors(), self.metrics, required=required)

    def _stop(self, *, anneal: bool) -> None:
        """Save after a signal, and raise TryAgain; or let the learning rates fall to zero, for a separate run."""
        self._save(required=True)
        if not (anneal and self.schedule.step):
            raise TryAgain(
                f"stopped by a signal at step {self.schedule.step:,}; everything is saved",
                hint=f"the same command{'' if self._resume else ' without --no-resume'} resumes from there",
            )
        line = "learning rates fall to zero, then the run is published; a second signal ends it now"
        self.report(f"stopped by a signal: {line}")
        self.schedule.anneal()
        self.folder = self.folder / artifact.SCRATCH / ANNEALED
        self.checkpointer.folder = self.folder / CHECKPOINTS
        if self.world.is_main:
            files.remove_tree(self.folder)

    @property
    def _step_tokens(self) -> int:
        return self.config.batch_size * self.preset.model.block_size

    def result(self, records: Path) -> Result:
        """Return the final numbers, from the metrics in `records` and the checkpoints in `folder`."""
        precision = self.learner.execution.precision
        return make_result(
            *(records, self.folder, self.schedule, self.preset, self.device, precision, self.world.size),
            epochs=round(self.sampler.epoch(self.data_step, self.config.batch_size), 3),
            waited=round(self.loader.waited / max(self.schedule.seconds, 1e-9), 4),
            **(self.baselines.fields if self.baselines else {}),
            ended_early=self.ended_early,
            task=self.task.name,
            parent=self._parent,
        )
