"""The error for a cleaning that leaves no document: why each was dropped, and the option that keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.clean.options import CleanOptions
from pipeline.errors import BadData

_MAX_NAMES = 3  # of files in the message
_KEEP_ALL = "use --profile text, which keeps it as it is"


def no_text_left(
    names: Sequence[str], dropped: Mapping[str, int], options: CleanOptions, *, has_headings: bool
) -> BadData:
    """Return the error. `dropped` counts documents by reason; `has_headings` is True if a heading was removed."""
    subject = ", ".join(names[:_MAX_NAMES])
    if len(names) > _MAX_NAMES:
        subject += f" and {len(names) - _MAX_NAMES:,} more"
    ranked = sorted(dropped.items(), key=lambda item: (-item[1], item[0])) or [("empty", 0)]
    cause, hint = _explain(ranked[0][0], options, has_headings=has_headings)
    reasons, total = ", ".join(f"{count:,} {reason}" for reason, count in ranked), sum(dropped.values())
    documents = "the only document was" if total == 1 else f"all {total:,} documents were"
    summary = f"{documents} dropped ({reasons})" if dropped else "there are no documents"
    return BadData(f"{subject}: no text is left: {summary}{cause}", hint=hint)


def _explain(reason: str, options: CleanOptions, *, has_headings: bool) -> tuple[str, str]:
    """Return the cause of a reason, as a clause to append to the message, and the hint."""
    if reason in ("no-han", "few-han"):
        if options.min_han is not None:
            return f", since --min-han {options.min_han:g} was given", "use --min-han 0"
        if options.profile != "auto":
            return f", since --profile {options.profile} was given", "use --profile auto"
        return ": no letters, only marks, digits or □", _KEEP_ALL
    if reason == "lacunae":
        if options.lacunae == "drop-unit":
            return ", since --lacunae drop-unit was given", "use --lacunae keep"
        return ": too many of the characters are □", _KEEP_ALL
    if reason == "mojibake":
        return ": the text looks wrongly decoded", f"pass --encoding, for example gb18030; or {_KEEP_ALL}"
    if reason == "too-short":
        if options.min_chars > 1:
            return f", since --min-chars {options.min_chars} was given", "use --min-chars 1"
        return ": nothing but 。！？", "check where the input comes from"
    if reason == "empty" and has_headings:
        return ": nothing but headings", "use --headings keep"
    if reason.startswith("bad-") and options.max_bad:
        return (
            f", which --max-bad {options.max_bad:g} allows",
            "leave out --max-bad: then the rejects stay for inspection",
        )
    return "", "check where the input comes from"
