"""What must not be shown: passwords and signatures in URLs, and tokens. Used wherever text leaves the program."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit, urlunsplit

_USER = re.compile(r"(?<=://)[^/\s]*@")  # to the last @ before the path: a password may hold one
_QUERY = re.compile(r"(https?://[^\s?\"']+\?)[^\s\"<>]+", re.IGNORECASE)
_PATH_QUERY = re.compile(r"(/[^\s?\"']*\?)[^\s\"<>=]+=[^\s\"<>]+")  # as urllib3 names what it asked for
_TOKEN = re.compile(r"\b(hf_|Bearer\s+|Basic\s+)[\w.~+/=-]{4,}")
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST = 4  # characters: what is shorter is no secret, and would be found everywhere


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` without credentials: users and passwords of URLs, their queries (they may be signed), and tokens."""
    for secret in _secrets(environment):
        text = text.replace(secret, "…")
    text = _QUERY.sub(r"\1…", _USER.sub("", text))
    return _TOKEN.sub(r"\1…", _PATH_QUERY.sub(r"\1…", text))


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Tokens, and passwords of proxies, as the environment has them. The longest come first: one may begin another."""
    found = [environment.get(name, "").strip() for name in _SECRETS]
    for name, value in environment.items():
        if name.lower().endswith("_proxy") and "@" in value:
            password = value.rpartition("@")[0].rpartition("/")[2].partition(":")[2]
            found += [password, unquote(password)]
    return sorted((each for each in found if len(each) >= _SHORTEST), key=len, reverse=True)


def shown(url: str) -> str:
    """`url` as it may be shown and stored. Of a query only a hash is left, so that two of them stay two."""
    parts = urlsplit(url)
    query = f"…{hashlib.sha256(parts.query.encode(errors='replace')).hexdigest()[:12]}" if parts.query else ""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment=""))
