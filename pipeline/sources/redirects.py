"""Policy for HTTP redirects.

A URL that the user named is requested as it is. A redirect is followed only to the same server, or over https to a
known host of the same service at a public address. docs/design/reliability.md, 3.4.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

import requests

from pipeline.errors import ProtocolBroken
from pipeline.runtime.redaction import redact_url

_KNOWN_HOSTS = ("huggingface.co", "hf.co", "githubusercontent.com", "github.com")  # of the catalogue's sources


def check_redirect(url: str, target: str, allow_hosts: tuple[str, ...] = ()) -> None:
    """Raise ProtocolBroken unless a request for `url` may be redirected to `target`."""
    parts = urlsplit(target)
    if origin(url) == origin(target):
        return
    host, port, source_host = (parts.hostname or "").rstrip("."), _port(parts), urlsplit(url).hostname or ""
    if parts.scheme in ("http", "https") and {host, f"{host}:{port}"} & {name.lower() for name in allow_hosts}:
        return
    if (parts.scheme, host, port) == ("https", source_host, 443):  # the same host with TLS, at the default port
        return
    source_host = source_host.removeprefix("www.")
    if parts.scheme != "https":
        reason = f"its scheme must be https, got {parts.scheme}"
    elif not any(host == name or host.endswith(f".{name}") for name in (source_host, *_KNOWN_HOSTS)):
        reason = f"{host} is another host"
    elif not _is_public(host, parts):
        reason = f"{host} has a private address"
    else:
        return
    hint = "pass the final URL, or allow the host with --allow-host HOST"
    raise ProtocolBroken(f"{redact_url(url)}: its redirect is refused: {reason}", hint=hint)


def origin(url: str) -> tuple[str, str, int]:
    """Return (scheme, host, port) of a URL."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").rstrip("."), _port(parts)


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:  # not a number, or out of range
        return 0


def _is_public(host: str, parts: SplitResult) -> bool:
    """Return True if a host has only public addresses, if a proxy resolves its name, or if it does not resolve."""
    if requests.utils.select_proxy(parts.geturl(), requests.utils.get_environ_proxies(parts.geturl(), no_proxy=None)):
        return True
    try:
        names = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return True  # the request itself will fail
    addresses = [ipaddress.ip_address(str(name).partition("%")[0]) for name in names]
    return all((getattr(address, "ipv4_mapped", None) or address).is_global for address in addresses)
