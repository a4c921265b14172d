"""Refusal of a downloaded pointer: the small text that Git LFS and similar programs store in the place of a file.

Servers of repositories send it from addresses of raw content; the file itself has another address.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pipeline.errors import BadData
from pipeline.readers import binary
from pipeline.runtime.redaction import redact_url
from pipeline.sources.partial import PartialFile

_HEAD = 1 << 10  # bytes; a pointer of Git LFS is shorter
_CONTENT = (  # addresses of raw content, and where the same server has the file
    (r"https://raw\.githubusercontent\.com/([^/]+/[^/]+)/", r"https://media.githubusercontent.com/media/\1/"),
    (r"https://github\.com/([^/]+/[^/]+)/raw/", r"https://media.githubusercontent.com/media/\1/"),
    (r"(https://huggingface\.co/(?:datasets/)?[^/]+/[^/]+)/raw/(?=[^/]+/)", r"\1/resolve/"),
)


def refuse_pointer(url: str, part: PartialFile) -> None:
    """Raise BadData, and empty the part, if the file that was received from `url` is a pointer."""
    with open(part.flushed(), "rb") as file:
        kind = binary.describe_pointer(file.read(_HEAD))
    if kind:
        part.truncate(0)
        content = _content_url(url)
        hint = f"download {content}" if content else f"clone the repository, then {binary.hint_for(kind)}"
        raise BadData(f"{redact_url(url)}: the server sent {kind}, not the file itself", hint=hint)


def _content_url(url: str) -> str:
    """Return the address at which the server of a pointer has the file, or ""."""
    shown = redact_url(url) if not urlsplit(url).query else ""
    for pattern, replacement in _CONTENT:
        if re.match(pattern, shown):
            return re.sub(pattern, replacement, shown, count=1)
    return ""
