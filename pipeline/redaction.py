"""What must not be shown: passwords and signatures in URLs, and tokens. Used wherever text leaves the program."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

_USER = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(https?://[^\s?\"']+\?)[^\s\"')]+")
_TOKEN = re.compile(r"\b(hf_|Bearer\s+|Basic\s+)[\w.~+/=-]{4,}")
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` without credentials: users and passwords of URLs, their queries (they may be signed), and tokens."""
    for name in _SECRETS:
        if len(secret := environment.get(name, "").strip()) >= 4:
            text = text.replace(secret, "…")
    return _TOKEN.sub(r"\1…", _QUERY.sub(r"\1…", _USER.sub("", text)))


def shown(url: str) -> str:
    """`url` as it may be shown and stored. Of a query only a hash is left, so that two of them stay two."""
    parts = urlsplit(url)
    query = f"…{hashlib.sha256(parts.query.encode()).hexdigest()[:12]}" if parts.query else ""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment=""))
