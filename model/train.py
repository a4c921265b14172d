"""The training loop: blocks, loss, step; now and then an evaluation and a checkpoint; a loss curve at the end."""

from __future__ import annotations

import csv
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch

from model import batches, checkpoint, curve, optim
from model import device as devices
from model.batches import Sampler
from model.checkpoint import State
from model.config import TrainConfig
from model.evaluate import Evaluation, ValidationSet, evaluate, validation_set
from model.gpt import GPT
from model.run import RESULT, Plan, Report, Result, read_result
from pipeline import files, tokens
from pipeline.errors import BadData, TrainingDiverged, TryAgain
from pipeline.tokens import TokenStore

_LOG_SECONDS = 10.0
_EVALUATION_SHARE = 0.1
_CHECKPOINT_SECONDS = 300.0


class Schedule:
    """How far a schedule has come: by steps, or by the clock when `minutes` is set."""

    def __init__(self, config: TrainConfig, step: int, seconds: float) -> None:
        self._config = config
        self._before = seconds
        self.step = step
        self.start()

    def start(self) -> None:
        """Begin to count the time: what came before, like the first evaluation, is no training."""
        self._start = time.monotonic()

    def __str__(self) -> str:
        done = min(self.done, 1.0) if self.step else 0.0
        return f"step {self.step:>6,}  {done:4.0%}"

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    @property
    def done(self) -> float:
        """Share of the schedule that has passed, 1 or more at its end."""
        if self._config.minutes:
            return self.seconds / (60 * self._config.minutes)
        return self.step / self._config.steps


def fit(folder: Path, planned: Plan, *, device: str, resume: bool, report: Report) -> Result:
    """Train the plan's model in `folder`, the draft of its run, and write there all that a run holds.

    Raises TryAgain when a signal stopped it (everything is saved), TrainingDiverged when the loss is no number.
    """
    model_config, config = planned.preset.model, planned.preset.train
    store = tokens.open_store(planned.tokens)
    validation = validation_set(store, config.eval_tokens)
    block = model_config.block_size
    sampler = Sampler(store.train, block, config.seed, "random", store.key)  # too few tokens: it says so now
    where = devices.pick(device)
    store.tokenizer.save(folder)
    files.write_file(folder / "config.json", _config_json(planned))

    model = GPT(model_config)
    model.initialise(config.seed)
    model.to(where)
    optimizer = optim.adamw(model, config)
    checkpoints = folder / "checkpoints"
    schedule = _restore(checkpoints, model, optimizer, config, report, resume=resume)
    before = _go_on_from(planned, model, optimizer, report, load=schedule.step == 0)
    if schedule.step == 0:
        _announce(planned, store, model, where, report)

    loop = _Loop(folder, model, optimizer, config, sampler, validation, where, report, before)
    with _stop_signal() as stopped, Metrics(folder / "metrics.csv", schedule.step) as metrics:
        loop.run(schedule, metrics, stopped)
    return _finish(folder, planned, loop, schedule, where)


class _Loop:
    """The state of a training while it runs: what is trained, and what was evaluated and saved."""

    def __init__(
        self,
        folder: Path,
        model: GPT,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        sampler: Sampler,
        validation: ValidationSet,
        device: torch.device,
        report: Report,
        steps_before: int,
    ) -> None:
        self.steps_before = steps_before
        self.model, self.optimizer, self.config, self.sampler = model, optimizer, config, sampler
        self.validation, self.device, self.report = validation, device, report
        self.checkpoints = folder / "checkpoints"
        self.trained_tokens = config.batch_size * config.accumulate * model.config.block_size
        self._evaluating = 0.0  # seconds
        self._evaluated_step = self._saved_step = -1
        self._paced = (time.monotonic(), 0)  # when, and at which step
        self._loss_sum = torch.zeros((), device=device)
        self._loss_count = 0

    def run(self, schedule: Schedule, metrics: Metrics, stopped: threading.Event) -> None:
        """Train to the end of the schedule. Raises TryAgain, with everything saved, when `stopped` is set before."""
        config = self.config
        if schedule.step == 0:
            self._evaluate(schedule, metrics)
            schedule.start()
        wanted = config.evaluations if config.minutes else min(config.evaluations, max(config.steps // 10, 1))
        evaluations = math.floor(schedule.done * wanted)
        logged = saved = time.monotonic()
        self._paced = (logged, schedule.step)
        self.model.train()
        while schedule.done < 1 or schedule.step == 0:
            rate = optim.learning_rate(config, schedule.step, schedule.done)
            self._step(schedule.step, rate)
            schedule.step += 1
            due = math.floor(schedule.done * wanted)
            if due > evaluations and self._can_afford(schedule):
                self._save(schedule, self._evaluate(schedule, metrics, rate))
                evaluations, logged, saved = due, time.monotonic(), time.monotonic()
            elif time.monotonic() - saved > _CHECKPOINT_SECONDS:
                saved = time.monotonic()
                self._save(schedule, None)
            elif time.monotonic() - logged > _LOG_SECONDS:
                logged = time.monotonic()
                loss = self._mean_loss(schedule.step)
                metrics.add(schedule, self._tokens(schedule), rate, loss)
                self.report(f"{schedule}  loss {loss:.3f}  {self._pace(schedule)}")
            if stopped.is_set() and schedule.done < 1:
                self._save(schedule, None)
                raise TryAgain(
                    f"stopped by a signal at step {schedule.step:,}; everything is saved",
                    hint="the same command goes on from there",
                )
        if self._evaluated_step != schedule.step or self._saved_step != schedule.step:
            self._save(schedule, self._evaluate(schedule, metrics))

    def _step(self, step: int, rate: float) -> None:
        """One step on `accumulate` batches. Dropout is seeded by the step, so that a resumed run repeats it."""
        config = self.config
        step += self.steps_before  # a run that goes on from another does not see its blocks again
        torch.manual_seed((config.seed << 32) + step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = config.batch_size * config.accumulate
        ids = batches.to_device(self.sampler.batch(step, rows), self.device)
        for part in ids.split(config.batch_size):
            with devices.autocast(self.device):
                loss = self.model(part[:, :-1], part[:, 1:]) / config.accumulate
            loss.backward()
            self._loss_sum += loss.detach()
        self._loss_count += 1
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _mean_loss(self, step: int) -> float:
        """Mean training loss since it was last asked for. Raises TrainingDiverged when it is not a finite number."""
        mean = float(self._loss_sum) / max(self._loss_count, 1)
        self._loss_sum.zero_()
        self._loss_count = 0
        if not math.isfinite(mean):
            raise _diverged("loss", mean, step)
        return mean

    def _can_afford(self, schedule: Schedule) -> bool:
        """By the clock, evaluations may take a tenth of the time: a slow one is then made less often."""
        return not self.config.minutes or self._evaluating <= _EVALUATION_SHARE * schedule.seconds

    def _evaluate(self, schedule: Schedule, metrics: Metrics, rate: float = 0.0) -> float:
        """Measure, record and report; returns the validation loss."""
        start, pace = time.monotonic(), self._pace(schedule)
        loss = self._mean_loss(schedule.step) if self._loss_count else None
        found = evaluate(self.model, self.validation, self.device)
        self._evaluated_step = schedule.step
        self._evaluating += time.monotonic() - start
        if not math.isfinite(found.loss):
            raise _diverged("validation loss", found.loss, schedule.step)
        metrics.add(schedule, self._tokens(schedule), rate, loss, found)
        shown = f"loss {loss:.3f}  " if loss is not None else ""
        speed = f"  {pace}" if schedule.step else ""
        self.report(
            f"{schedule}  {shown}validation {found.loss:.3f} nats/token, {found.bits_per_char:.3f} bits/char{speed}"
        )
        self._paced = (time.monotonic(), schedule.step)
        return found.loss

    def _save(self, schedule: Schedule, loss: float | None) -> None:
        """Checkpoint now, with the validation loss if it was just measured; keep the last two and the best one."""
        if self._saved_step == schedule.step:
            return  # just now, with its evaluation
        self._mean_loss(schedule.step)  # nothing that is not a number is ever saved
        state = State(schedule.step, schedule.seconds, loss, self.model.config)
        checkpoint.save(self.checkpoints, state, self.model, self.optimizer)
        self._saved_step = schedule.step
        kept = checkpoint.steps(self.checkpoints)[:2]
        checkpoint.keep(self.checkpoints, {*kept, checkpoint.best(self.checkpoints)})

    def _tokens(self, schedule: Schedule) -> int:
        return schedule.step * self.trained_tokens

    def _pace(self, schedule: Schedule) -> str:
        """Tokens per second since it was last asked for, evaluations not counted."""
        now, (then, step) = time.monotonic(), self._paced
        self._paced = (now, schedule.step)
        return f"{(schedule.step - step) * self.trained_tokens / max(now - then, 1e-9):,.0f} tokens/s"

    def rate(self, schedule: Schedule) -> float:
        return self._tokens(schedule) / max(schedule.seconds, 1e-9)


def _diverged(what: str, value: float, step: int) -> TrainingDiverged:
    return TrainingDiverged(
        f"the {what} is {value} at step {step:,}; the last checkpoint was kept",
        hint="try a smaller --set learning_rate=…",
    )


def _restore(
    folder: Path, model: GPT, optimizer: torch.optim.Optimizer, config: TrainConfig, report: Report, *, resume: bool
) -> Schedule:
    """Load the newest checkpoint that is whole. Never starts afresh in silence when there are only damaged ones."""
    if not resume:
        files.remove_tree(folder)
    found = checkpoint.steps(folder) if folder.is_dir() else []
    for path in found:
        try:
            state = checkpoint.read_state(path)
            device = next(model.parameters()).device
            weights = checkpoint.load_model(path, device).state_dict()
            checkpoint.load_optimizer(path, model, optimizer)
        except BadData as error:
            report(f"warning: {error}; trying the one before it")
            continue
        model.load_state_dict(weights)
        report(f"going on from step {state.step:,} of an unfinished run")
        return Schedule(config, state.step, state.seconds)
    if found:
        raise TryAgain(
            f"{folder}: no checkpoint of the unfinished run can be read", hint="start again with --no-resume"
        )
    return Schedule(config, 0, 0.0)


def _go_on_from(planned: Plan, model: GPT, optimizer: torch.optim.Optimizer, report: Report, *, load: bool) -> int:
    """Begin with the weights, and the optimiser's moments, that an earlier run ended with. Returns its steps."""
    if planned.parent is None:
        return 0
    parent = planned.parent_path
    if parent is None:
        raise BadData(
            f"{planned.parent.name}: the run to go on from is gone", hint="train anew under another name, with --name"
        )
    result = read_result(parent)
    if load:
        last = parent / "checkpoints" / result.last
        try:
            model.load_state_dict(checkpoint.load_model(last, next(model.parameters()).device).state_dict())
            checkpoint.load_optimizer(last, model, optimizer)
        except BadData as error:
            raise BadData(
                error.what, hint=f"`rollback runs/{parent.parent.name}` goes on from the run before"
            ) from None
        report(f"going on from the weights of {parent.parent.name}/{parent.name}, after {result.steps:,} steps")
    return result.steps_before + result.steps


def _announce(planned: Plan, store: TokenStore, model: GPT, device: torch.device, report: Report) -> None:
    config = planned.preset.train
    per_step = config.batch_size * config.accumulate * model.config.block_size
    end = f"{config.minutes:g} minutes" if config.minutes else f"{config.steps:,} steps"
    report(
        f"{planned.preset_name}: {model.config.parameters / 1e6:.2f}M parameters on {device}, "
        f"{len(store.train):,} training tokens, {per_step:,} a step, {end}"
    )


def _config_json(planned: Plan) -> bytes:
    preset = {"preset": planned.preset_name, **asdict(planned.preset)}
    return msgspec.json.format(msgspec.json.encode(preset), indent=2)


def _finish(folder: Path, planned: Plan, loop: _Loop, schedule: Schedule, device: torch.device) -> Result:
    """Write the result and draw the curve."""
    metrics = folder / "metrics.csv"
    evaluated = [row for row in read_metrics(metrics) if row["val_loss"]]
    best = min(evaluated[1:] or evaluated, key=lambda row: float(row["val_loss"]))
    newest = checkpoint.steps(folder / "checkpoints")[0]
    lowest = checkpoint.best(folder / "checkpoints") or newest
    checkpoint.keep(folder / "checkpoints", {newest, lowest})
    if lowest != newest:
        checkpoint.drop_optimizer(lowest)
    rate = loop.rate(schedule)
    peak = devices.peak_flops(device)
    result = Result(
        steps=schedule.step,
        tokens=schedule.step * loop.trained_tokens,
        parameters=planned.preset.model.parameters,
        device=str(device),
        seconds=round(schedule.seconds, 3),
        tokens_per_second=round(rate, 1),
        mfu=round(rate * planned.preset.model.flops_per_token / peak, 4) if peak else None,
        val_loss=float(evaluated[-1]["val_loss"]),
        bits_per_char=float(evaluated[-1]["bits_per_char"]),
        bits_per_byte=float(evaluated[-1]["bits_per_byte"]),
        first_bits_per_char=float(evaluated[0]["bits_per_char"]),
        best_val_loss=float(best["val_loss"]),
        best_bits_per_char=float(best["bits_per_char"]),
        last=newest.name,
        best=lowest.name,
        steps_before=loop.steps_before,
    )
    files.write_file(folder / RESULT, msgspec.json.format(msgspec.json.encode(result), indent=2))
    uniform = math.log(planned.preset.model.vocab_size)
    curve.draw(metrics, folder / "loss.png", f"{planned.name} ({planned.preset_name})", uniform)
    return result


class Metrics:
    """`metrics.csv`, a line at a time. A resumed run goes on after the row of the step that it resumes from."""

    def __init__(self, path: Path, step: int) -> None:
        kept = [row for row in read_metrics(path) if int(row["step"]) <= step] if step and path.exists() else []
        self._file = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed in __exit__
        self._writer = csv.DictWriter(self._file, curve.COLUMNS, lineterminator="\n")
        self._writer.writeheader()
        self._writer.writerows(kept)

    def add(
        self, schedule: Schedule, count: int, rate: float, loss: float | None, found: Evaluation | None = None
    ) -> None:
        row = {
            "step": schedule.step,
            "tokens": count,
            "seconds": f"{schedule.seconds:.2f}",
            "learning_rate": f"{rate:.6g}",
            "train_loss": "" if loss is None else f"{loss:.5f}",
        }
        if found:
            scored = {
                "val_loss": found.loss,
                "bits_per_char": found.bits_per_char,
                "bits_per_byte": found.bits_per_byte,
            }
            row |= {name: f"{value:.5f}" for name, value in scored.items()}
        self._writer.writerow(row)
        self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second one ends the process as usual."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: object) -> None:
        stopped.set()
        for each, handler in before.items():
            signal.signal(each, handler)
        if number == signal.SIGTERM and callable(terminate := before[number]):
            terminate(number, frame)  # so that whoever waits above knows, and the second one is its second

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
