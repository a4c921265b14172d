"""Progress whose notes a test reads."""

from __future__ import annotations

from pipeline.runtime.progress import SilentProgress


class Notes(SilentProgress):
    """Progress that keeps the lines that a command would print."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)
