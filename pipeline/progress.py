"""What a stage tells the person who waits: notes, and bars with rate and time left.

A stage is handed a `Progress` and never asks where it prints. On a terminal there are bars, elsewhere plain lines
(cron mails them), with --quiet nothing. Everything goes to stderr: stdout belongs to results.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    def note(self, text: str) -> None:
        """Say one line."""

    def bar(self, what: str, total: int | None) -> AbstractContextManager[Advance]:
        """Follow a piece of work of `total` bytes (None: unknown); call the result with each count of bytes done."""


class Silent:
    """Says nothing: tests, workers and --quiet."""

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[Advance]:
        yield lambda count: None


class Lines:
    """Plain lines: one for a note, one when a piece of work is done."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

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


class Logged:
    """Another Progress, with every note also appended to a file as one JSON object a line."""

    def __init__(self, shown: Progress, path: Path) -> None:
        self._shown, self._path = shown, path

    def event(self, **fields: Any) -> None:
        fields = {"ts": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **fields}
        with open(self._path, "a", encoding="utf-8") as log:
            log.write(json.dumps(fields, ensure_ascii=False) + "\n")

    def note(self, text: str) -> None:
        self.event(event="note", text=text)
        self._shown.note(text)

    @contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[Advance]:
        start = time.monotonic()
        self.event(event="start", work=what, bytes=total)
        with self._shown.bar(what, total) as advance:
            yield advance
        self.event(event="done", work=what, seconds=round(time.monotonic() - start, 3))
