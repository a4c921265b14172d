"""Regular expressions that are compiled on first use: those of all rules take longer to compile than a short text."""

from __future__ import annotations

import re
from typing import Any, cast


class _LazyPattern:
    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    def __getattr__(self, name: str) -> Any:
        compiled = re.compile(*self._arguments)
        for method in ("fullmatch", "match", "search", "sub", "subn", "split", "findall", "finditer", "pattern"):
            setattr(self, method, getattr(compiled, method))
        return getattr(compiled, name)


def lazy_pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Return what `re.compile` returns, but compile it on first use."""
    return cast(re.Pattern[str], _LazyPattern(pattern, flags))
