"""What a stage tells the person who waits, notes and bars with rate and time left; and what it is told: to stop.

A stage is handed a `Progress` and never asks where it prints. On a terminal there are bars, elsewhere plain lines
(cron mails them), with --quiet nothing. Everything goes to stderr: stdout belongs to results. What cannot be printed
or logged, because a disk is full or nobody listens, stops no work.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import TryAgain
from pipeline.runtime.redaction import redacted

Advance = Callable[[int], None]
_HEARTBEAT = 60.0  # seconds


class Progress:
    """Says nothing: tests, workers and --quiet. `stop` is set when the command shall end at its next safe point."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop or threading.Event()

    def note(self, text: str) -> None:
        """Say one line."""

    @contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[Advance]:
        """Follow a piece of work of `total` bytes (None: unknown); call the result with each count of bytes done."""
        yield lambda count: None

    def event(self, event: str, **fields: Any) -> None:
        """Put something into the log, if there is one."""

    def safe_point(self, saved: str) -> None:
        """Raise TryAgain if the command shall stop. Called where that loses nothing: `saved` says what is kept."""
        if self.stop.is_set():
            raise TryAgain(f"stopped by a signal; {saved}", hint="the same command goes on from there")


Silent = Progress


class Lines(Progress):
    """Plain lines: one for a note, one when a piece of work is done."""

    def note(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # stderr may be closed
            print(redacted(text), file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[Advance]:
        done, start = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal done
            done += count

        yield advance
        seconds = max(time.monotonic() - start, 1e-9)
        self.note(f"{what}: {done / 1e6:,.1f} MB in {seconds:.1f} s ({done / 1e6 / seconds:,.1f} MB/s)")


class Bars(Lines):
    """Bars on a terminal, drawn by rich."""

    @contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Rich

        columns = ("[progress.description]{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Rich(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as rich:
            task = rich.add_task(what, total=total)
            yield lambda count: rich.advance(task, count)


class Logged(Progress):
    """Another Progress, with everything also appended to a file: one JSON object a line, each with the run's id.

    The file is opened anew for each line, so it may be rotated at any time.
    """

    def __init__(self, shown: Progress, path: Path, run_id: str) -> None:
        super().__init__(shown.stop)
        self._shown, self._path, self._run_id = shown, path, run_id
        self._warned = False

    def event(self, event: str, **fields: Any) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        told = {name: redacted(value) if isinstance(value, str) else value for name, value in fields.items()}
        line = json.dumps({"ts": now, "run_id": self._run_id, "event": event, **told}, ensure_ascii=False)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(line + "\n")
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._shown.note(f"warning: {self._path}: {error.strerror}; going on without a log")

    def note(self, text: str) -> None:
        self.event("note", text=text)
        self._shown.note(text)

    @contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[Advance]:
        start, done, beat = time.monotonic(), 0, time.monotonic()
        self.event("start", work=what, bytes=total)
        with self._shown.bar(what, total) as shown:

            def advance(count: int) -> None:
                nonlocal done, beat
                done += count
                shown(count)
                if time.monotonic() - beat > _HEARTBEAT:
                    beat = time.monotonic()
                    self.event("heartbeat", work=what, bytes=done, of=total)

            yield advance
        self.event("done", work=what, bytes=done, seconds=round(time.monotonic() - start, 3))
