"""The ledger: a proof that every document and character of the input is accounted for.

Every stage shows that `in + Σ added = out + Σ dropped[reason]`, for documents and for characters, and refuses to
publish when the sums differ. Reasons that start with `bad-` are faults of the input and count towards `--max-bad`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import InternalError, TooManyRejects

DEFAULT_MAX_BAD = 0.001
BAD = "bad-"


@dataclass
class LedgerTally:
    """Counts of one kind of item: read, written, dropped by reason, and added by reason."""

    came: int = 0
    out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)  # written without having been read

    def record_dropped(self, reason: str, count: int) -> None:
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def record_added(self, reason: str, count: int) -> None:
        if count:
            self.added[reason] = self.added.get(reason, 0) + count

    def add(self, other: LedgerTally) -> None:
        self.came += other.came
        self.out += other.out
        for reason, count in other.dropped.items():
            self.record_dropped(reason, count)
        for reason, count in other.added.items():
            self.record_added(reason, count)

    @property
    def bad(self) -> int:
        return sum(count for reason, count in self.dropped.items() if reason.startswith(BAD))

    def to_dict(self) -> dict[str, Any]:
        added = {"added": dict(sorted(self.added.items()))} if self.added else {}
        return {"in": self.came, "out": self.out, "dropped": dict(sorted(self.dropped.items())), **added}


@dataclass
class Ledger:
    """Tallies of one stage, for documents and for characters (Unicode code points)."""

    documents: LedgerTally = field(default_factory=LedgerTally)
    characters: LedgerTally = field(default_factory=LedgerTally)

    def add(self, other: Ledger) -> None:
        self.documents.add(other.documents)
        self.characters.add(other.characters)

    def close(self, *, max_bad: float = DEFAULT_MAX_BAD, record_count: int | None = None) -> dict[str, Any]:
        """Check the ledger and return it as a plain dict.

        Raises InternalError when a tally does not add up, and TooManyRejects when the bad documents exceed the
        fraction `max_bad` of the `record_count` records that were read (None: of all documents but
        blank lines).
        """
        for name, tally in (("documents", self.documents), ("characters", self.characters)):
            accounted = tally.out + sum(tally.dropped.values()) - sum(tally.added.values())
            if tally.came != accounted:
                raise InternalError(
                    f"the ledger of {name} does not add up: {tally.came:,} in, {accounted:,} accounted for",
                    hint="this is a bug; nothing was published",
                )
        records = record_count
        if records is None:
            records = self.documents.came - self.documents.dropped.get("blank-line", 0)
        if self.documents.bad > max_bad * records:
            reasons = ", ".join(
                f"{count:,} {reason}" for reason, count in self.documents.dropped.items() if reason.startswith(BAD)
            )
            raise TooManyRejects(
                f"{self.documents.bad:,} of {records:,} documents are bad ({reasons}), "
                f"more than --max-bad {max_bad:g} allows",
                hint="inspect the rejects, then fix the input, or accept them with "
                f"--max-bad {math.ceil(1000 * self.documents.bad / max(records, 1)) / 1000:g}",
            )
        return {"documents": self.documents.to_dict(), "characters": self.characters.to_dict()}
