"""Numbers of a corpus: what its report.json counted, and the lengths of its documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.errors import BadData
from pipeline.report.bins import Bins, bins_of
from pipeline.runtime.regular_file import read_regular
from pipeline.store.artifact import Artifact

REPORT = "report.json"


@dataclass(frozen=True)
class CorpusNumbers:
    """Numbers of a corpus. `report` is its report.json."""

    report: dict[str, Any]
    sentences: Bins | None


def collect(corpus: Artifact) -> CorpusNumbers:
    """Collect the numbers of a corpus. Raises BadData if its report.json is missing or damaged."""
    path = corpus.file(REPORT)
    try:
        report: dict[str, Any] = msgspec.json.decode(read_regular(path))
        lengths = {int(length): int(count) for length, count in report["sentences"]["lengths"].items()}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise BadData(f"{path}: not the report of a corpus: {error}", hint="`clean` it again") from None
    return CorpusNumbers(report, bins_of(lengths))
