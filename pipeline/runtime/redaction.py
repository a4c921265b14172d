"""Redaction of passwords, signatures and tokens, for every text that leaves the program."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit, urlunsplit

_USER = re.compile(r"(?<=://)[^/\s]*@")  # up to the last @ before the path: a password may contain one
_QUERY = re.compile(r"(https?://[^\s?\"']+\?)[^\s\"<>]+", re.IGNORECASE)
# A URL without its host, as in urllib3's errors: a query with an equals sign, or any after "with url:"
_PATH_QUERY = re.compile(r"(with url: [^\s?]*\?|/[^\s?\"']*\?(?=[^\s\"<>=]+=))[^\s\"<>]+")
_TOKEN = re.compile(r"\b(hf_|Bearer\s+|Basic\s+)[\w.~+/=-]{4,}")
_TOKEN_VARIABLES = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_CLIENT_SECRET"),
    "GOOGLE_SERVICE_ACCOUNT_KEY",
)
_MIN_SECRET = 4  # characters: a shorter value is not a secret, and would match everywhere


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return `text` without credentials: users and passwords in URLs, URL queries (may be signed), and tokens."""
    for secret in _secrets(environment):
        text = text.replace(secret, "…")
    text = _QUERY.sub(r"\1…", _USER.sub("", text))
    return _TOKEN.sub(r"\1…", _PATH_QUERY.sub(r"\1…", text))


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Return tokens and proxy passwords from the environment, longest first, as one may be a prefix of another."""
    secrets = [environment.get(name, "").strip() for name in _TOKEN_VARIABLES]
    for name, value in environment.items():
        if name.lower().endswith("_proxy") and "@" in value:
            password = value.rpartition("@")[0].rpartition("/")[2].partition(":")[2]
            secrets += [password, unquote(password)]
    secrets += [repr(secret)[1:-1] for secret in secrets]  # as a traceback quotes them
    return sorted({secret for secret in secrets if len(secret) >= _MIN_SECRET}, key=len, reverse=True)


def redact_url(url: str) -> str:
    """Return `url` as it may be displayed and stored: without credentials and fragment, its query as a hash.

    The hash is the first 12 hex digits of the query's sha256, so different queries stay distinguishable.
    """
    parts = urlsplit(url)
    query = f"…{hashlib.sha256(parts.query.encode(errors='replace')).hexdigest()[:12]}" if parts.query else ""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment=""))
