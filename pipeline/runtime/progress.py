"""Progress reporting (log lines, bars, JSON events) and the stop flag.

A stage receives a `Progress`, which decides where its messages go. A program that uses this package as a library
gets them through the standard `logging`, from the logger "pipeline". The command line shows bars on a terminal, plain
lines elsewhere (cron mails them) and nothing with --quiet; all of it goes to stderr, because stdout is reserved for
results. A failure to print or to log, such as a full disk or a closed pipe, never stops the work.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import TryAgain
from pipeline.runtime.redaction import redact
from pipeline.runtime.terminal import data_size, json_line, printable

Advance = Callable[[int], None]
_HEARTBEAT = 60.0  # seconds
_PATIENCE = 2.0  # seconds without a report, after which the title of a wait is reported
_RATED_BYTES = 1_000_000  # minimum for which a rate is shown; with fewer bytes, the start of processes dominates


class Progress:
    """Progress of a library call: messages go to the logger "pipeline", bars are not shown.

    `stop` is set when the command should end at its next safe point.
    """

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop or threading.Event()

    def note(self, text: str) -> None:
        """Report one line."""
        level = logging.WARNING if text.startswith("warning: ") else logging.INFO
        logging.getLogger("pipeline").log(level, "%s", _shown(text).removeprefix("warning: "))

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Advance]:
        """Follow a piece of work of `total` bytes (None: unknown).

        Yields a function to call with each count of bytes processed.
        """
        yield lambda count: None

    @contextmanager
    def wait(self, title: str) -> Iterator[None]:
        """Report the title of a piece of work that has no bar, once nothing was reported for two seconds."""
        yield

    def event(self, event: str, **fields: Any) -> None:
        """Append an event to the JSON log, if there is one."""

    def safe_point(self, saved: str) -> None:
        """Raise TryAgain if a stop was requested.

        Call this where stopping loses nothing; `saved` tells the user what is kept.
        """
        if self.stop.is_set():
            raise TryAgain(f"stopped by a signal; {saved}", hint="run the same command again to resume")


def _shown(text: str) -> str:
    """Return one line as it may be shown: without credentials and control characters."""
    return printable(redact(text))


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a log; a FIFO that nobody reads is an error (ENXIO) instead of a wait."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


class SilentProgress(Progress):
    """No messages at all: --quiet, and tests."""

    def note(self, text: str) -> None:
        pass


class LineProgress(Progress):
    """Plain lines: one per note, and one when a piece of work has finished."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        super().__init__(stop)
        self._reports = 0  # notes and bars so far

    def note(self, text: str) -> None:
        self._reports += 1
        with suppress(OSError, ValueError, AttributeError):  # stderr may be closed
            print(_shown(text), file=sys.stderr, flush=True)

    @contextmanager
    def wait(self, title: str) -> Iterator[None]:
        reports = self._reports

        def explain() -> None:
            if self._reports == reports:
                self.note(f"{title} …")

        timer = threading.Timer(_PATIENCE, explain)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Advance]:
        self._reports += 1
        processed, start = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal processed
            processed += count

        yield advance
        seconds = max(time.monotonic() - start, 1e-9)
        rate = f" ({data_size(processed / seconds)}/s)" if processed >= _RATED_BYTES else ""
        self.note(f"{title}: {data_size(processed)} in {seconds:.1f} s{rate}")


class BarProgress(LineProgress):
    """Progress bars on a terminal, drawn by rich."""

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Advance]:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as RichProgress

        self._reports += 1
        columns = ("[progress.description]{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with RichProgress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as rich:
            task = rich.add_task(escape(_shown(title)), total=total)
            yield lambda count: rich.advance(task, count)


class JsonLogProgress(Progress):
    """Wrapper that also appends everything to a log file: one JSON object per line, each with the id of the run.

    The file is reopened for each line, so it may be rotated at any time.
    """

    def __init__(self, shown: Progress, path: Path, run_id: str) -> None:
        super().__init__(shown.stop)
        self._display, self._path, self._run_id = shown, path, run_id
        self._warned = False

    def event(self, event: str, **fields: Any) -> None:
        timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        values = {name: redact(value) if isinstance(value, str) else value for name, value in fields.items()}
        line = json_line({"ts": timestamp, "run_id": self._run_id, "event": event, **values})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8", opener=_open_without_waiting) as log:
                log.write(line + "\n")
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._display.note(f"warning: {self._path}: {error.strerror}; continuing without a log")

    def note(self, text: str) -> None:
        self.event("note", text=text)
        self._display.note(text)

    @contextmanager
    def wait(self, title: str) -> Iterator[None]:
        with self._display.wait(title):
            yield

    @contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Advance]:
        start = last_heartbeat = time.monotonic()
        processed = 0
        self.event("start", work=title, bytes=total)
        with self._display.bar(title, total) as advance_display:

            def advance(count: int) -> None:
                nonlocal processed, last_heartbeat
                processed += count
                advance_display(count)
                if time.monotonic() - last_heartbeat > _HEARTBEAT:
                    last_heartbeat = time.monotonic()
                    self.event("heartbeat", work=title, bytes=processed, of=total)

            yield advance
        self.event("done", work=title, bytes=processed, seconds=round(time.monotonic() - start, 3))
