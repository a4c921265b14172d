"""Access to the server: the host names that it answers to, and the keys of its API."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from model.serving.requests import error_body
from pipeline.errors import BadConfig, InputMissing
from pipeline.runtime.regular_file import read_regular

_LOOPBACK = re.compile(rb"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{0,5})?", re.IGNORECASE)
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)
_PORT = re.compile(rb":[0-9]{0,5}$")
_KEY = re.compile(rb"[\x21-\x7e]{8,1000}")
_MAX_KEY_FILE = 64 << 10  # bytes


@dataclass(frozen=True)
class Access:
    """Host names and keys that requests may have.

    `names` are accepted besides loopback names. Without any, a server that is not `local` accepts every name. Without
    `keys` the API is open.
    """

    local: bool = True
    names: frozenset[bytes] = frozenset()
    keys: tuple[bytes, ...] = ()

    @property
    def example_host(self) -> str:
        return " or ".join(["127.0.0.1", "localhost", *sorted(name.decode() for name in self.names)][-2:])

    def warning(self, host: str) -> str:
        """Return a warning about what a server at `host` exposes to other machines, "" if nothing."""
        if self.local:
            return ""
        problem = "sends its keys unencrypted" if self.keys else "has no authentication"
        return f"warning: {host} is reachable from other machines and {problem}"

    def has_host(self, host: bytes) -> bool:
        """Return True if a Host header, with or without a port, is accepted."""
        if not (self.local or self.names) or _LOOPBACK.fullmatch(host):
            return True
        return _PORT.sub(b"", host).lower() in self.names

    def has_key(self, authorization: bytes) -> bool:
        """Return True if an Authorization header has one of the keys. It takes the same time for every wrong key."""
        scheme, _, key = authorization.partition(b" ")
        matches = [hmac.compare_digest(key.strip(), known_key) for known_key in self.keys]
        return scheme.lower() == b"bearer" and any(matches)


def make_access(local: bool, names: Sequence[str], key_file: Path | None) -> Access:
    """Check the names of `--server-name`, and read the keys. Raises BadConfig or InputMissing."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise BadConfig(
                f"--server-name {name!s:.80}: not a host name", hint="give the name only, such as host.docker.internal"
            )
    keys = () if key_file is None else read_keys(key_file)
    return Access(local, frozenset(name.lower().encode() for name in names), keys)


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Read the keys of a file, one a line; empty lines and lines that begin with # do not count."""
    try:
        lines = read_regular(path, at_most=_MAX_KEY_FILE).splitlines()
    except OSError as error:
        raise InputMissing(f"--api-key-file {path}: {error.strerror}", hint="name a file with a key in it") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith(b"#"))
    if not keys or not all(map(_KEY.fullmatch, keys)):
        problem = "a key that is not 8 to 1,000 visible ASCII characters" if keys else "no key"
        raise BadConfig(f"--api-key-file {path}: {problem}", hint="`openssl rand -hex 24 > FILE` writes a key")
    return keys


class KeyCheck:
    """Middleware that refuses requests to /v1 without a key, before their body is read."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._access.keys and scope["path"].startswith("/v1"):
            headers = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(headers) != 1 or not self._access.has_key(headers[0]):
                message = "a key of this server is needed: Authorization: Bearer KEY"
                body = error_body(401, message, code="invalid_api_key")
                response = Response(body, 401, {"WWW-Authenticate": "Bearer"}, "application/json")
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
