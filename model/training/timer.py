"""A timer for work that is due every so many seconds."""

from __future__ import annotations


class Every:
    """Timer that is due `seconds` after it was last restarted.

    The caller passes the time in, so that several processes can share one clock.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._start = 0.0

    def restart(self, now: float) -> None:
        self._start = now

    def due(self, now: float) -> bool:
        """Return True, and restart, if more than the interval has passed."""
        if now - self._start <= self._seconds:
            return False
        self._start = now
        return True
