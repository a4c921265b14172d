"""Languages of a report. Every phrase is written in both where it is used: `say("documents", "文档")`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import BadConfig

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Language:
    """A language, "en" or "zh". Calling it returns the wording in it."""

    code: str

    def __call__(self, english: str, chinese: str) -> str:
        return chinese if self.code == "zh" else english

    @property
    def tag(self) -> str:
        """The value of the HTML attribute `lang`."""
        return "zh-Hans" if self.code == "zh" else "en"


def language_of(code: str = "", environment: Mapping[str, str] | None = None) -> Language:
    """Return the language of a code; of the locale if it is "". Raises BadConfig for another code."""
    if code in LANGUAGES:
        return Language(code)
    if code:
        raise BadConfig(
            f"the language of a report must be one of {', '.join(LANGUAGES)}, got {code}", hint="for example zh"
        )
    variables = os.environ if environment is None else environment
    locale = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := variables.get(name))), "")
    return Language("zh" if locale.lower().startswith("zh") else "en")
