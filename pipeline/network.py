"""HTTP under a policy: whom to ask, how far a redirect may lead, who sees a credential, how long to be patient.

A URL that a person named is asked whatever it is. A redirect is followed only to the same server, or over https to a
host that is known to belong to it, at a public address; a credential never goes along. reference/reliability.md, 3.4.
"""

from __future__ import annotations

import email.utils
import ipaddress
import random
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3

from pipeline.errors import NotPermitted, ProtocolBroken, RemoteGone, TryAgain
from pipeline.redaction import redacted, shown

ATTEMPTS = 5  # in a row that bring nothing
MAX_REDIRECTS = 5
_TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of an answer
_PATIENCE = 25.0  # seconds without anything new, not counting what a server asked to wait
_MAX_WAIT = 300.0  # seconds, however long a server asks to wait
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_FRIENDS = ("huggingface.co", "hf.co", "githubusercontent.com", "github.com")  # hosts of the catalogue, and theirs
_PERMANENT = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidHeader,
    requests.exceptions.MissingSchema,
)
TRANSIENT = (requests.RequestException, urllib3.exceptions.HTTPError)


class Retry(Exception):
    """An answer that may be better the next time; `wait` is how many seconds the server asked for."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class Bandwidth:
    """At most so many bytes a second, over all transfers together."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free_at, self._lock = rate, 0.0, threading.Lock()

    def delay(self, count: int) -> float:
        """How many seconds to wait after `count` bytes."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._rate
            return self._free_at - now


@dataclass(frozen=True)
class Network:
    """What holds for all transfers of a command. `until` is when to give up, by `time.monotonic`; None: never.

    `allow_hosts` are hosts (`name` or `name:port`) that a redirect may lead to beside those that are known.
    """

    allow_hosts: tuple[str, ...] = ()
    bandwidth: Bandwidth | None = None
    until: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def sleep(self, seconds: float) -> None:
        """Wait, unless that would be too long. Raises TryAgain when the command is stopped or out of time."""
        self.check(seconds)
        if self.stop.wait(seconds):
            self.check()

    def check(self, ahead: float = 0.0) -> None:
        if self.stop.is_set():
            raise TryAgain("stopped by a signal; what came is kept", hint="the same command goes on from there")
        if self.until is not None and time.monotonic() + ahead > self.until:
            raise TryAgain("the --deadline has passed; what came is kept", hint="the same command goes on from there")


class Patience:
    """How often to ask a server again that does not answer well."""

    def __init__(self, network: Network, url: str) -> None:
        self._network, self._shown = network, shown(url)
        self.renew()

    def renew(self) -> None:
        """Something new came."""
        self._barren, self._since = 0, time.monotonic()

    def again(self, error: Exception) -> None:
        """Wait before the next try. Raises TryAgain when there were too many, ProtocolBroken where none can help."""
        what = f"{self._shown}: {_short(error, self._shown)}"
        if isinstance(error, _PERMANENT):
            raise ProtocolBroken(what, hint="check the URL or --mirror") from None
        self._barren += 1
        hopeless = isinstance(error, requests.exceptions.SSLError)
        if hopeless or self._barren >= ATTEMPTS or time.monotonic() - self._since > _PATIENCE:
            hint = "check the network, the clock or a proxy; or give a --mirror; then run it again"
            raise TryAgain(what, hint=hint) from None
        asked = error.wait if isinstance(error, Retry) else 0.0
        self._network.sleep(max(asked, min(0.2 * 2**self._barren, 10.0) * random.uniform(0.5, 1.0)))
        self._since += asked


@dataclass(frozen=True)
class Facts:
    """What a server says of a file before it sends it. `url` is where to get it, with the commit in it where there is
    one; `size`, `sha256` and `etag` (of any kind, or else a date) are None or "" where it says nothing."""

    url: str
    size: int | None = None
    sha256: str = ""
    etag: str = ""
    commit: str = ""

    @property
    def strong_etag(self) -> str:
        """An ETag by which a range may be asked for, or ""."""
        return self.etag if self.etag.startswith('"') else ""


class Connection:
    """Requests for one file: to the server of `url`, and where that sends one. Use it in a `with` block."""

    def __init__(self, network: Network, token: str = "") -> None:
        self._network, self._token = network, token
        self._session = requests.Session()
        self._session.trust_env = False  # no credentials from .netrc; proxies are passed on explicitly
        self._session.headers["Accept-Encoding"] = "identity"  # the bytes as they are stored: they are what is hashed

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def facts(self, url: str) -> Facts:
        """What the server says of the file at `url`, without its bytes. Raises RemoteGone when it has no such file."""
        patience = Patience(self._network, url)
        while True:
            self._network.check()
            try:
                with self._request("HEAD", url, {}) as answer:
                    if answer.status_code in (404, 410):
                        raise gone(url, answer.status_code)
                    raise_if_busy(answer)
                    return _facts(url, answer)
            except (*TRANSIENT, Retry) as error:
                patience.again(error)

    def get(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        """The answer to a GET, its body still to be read; redirects that are allowed were followed."""
        return self._request("GET", url, headers)

    def _request(self, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
        hops: list[requests.Response] = []
        here = url
        while True:
            own = {"Authorization": f"Bearer {self._token}"} if self._token and _origin(here) == _origin(url) else {}
            answer = self._session.request(
                method,
                here,
                headers={**headers, **own},
                proxies=requests.utils.get_environ_proxies(here, no_proxy=None),
                stream=True,
                timeout=_TIMEOUT,
                allow_redirects=False,
            )
            answer.history = list(hops)
            target = self._session.get_redirect_target(answer)
            if not target:
                return answer
            there = urljoin(here, target)
            if method == "HEAD" and "X-Linked-Etag" in answer.headers and _origin(there) != _origin(url):
                return answer  # the hub has said all; where the bytes lie only a GET need go
            answer.close()
            hops.append(answer)
            if len(hops) > MAX_REDIRECTS:
                raise ProtocolBroken(f"{shown(url)}: more than {MAX_REDIRECTS} redirects", hint="check the URL")
            check_redirect(url, there, self._network.allow_hosts)
            here = there


def check_redirect(url: str, target: str, allow_hosts: tuple[str, ...] = ()) -> None:
    """Raise ProtocolBroken unless a server that was asked for `url` may send one to `target`."""
    parts = urlsplit(target)
    if _origin(url) == _origin(target):
        return
    host = (parts.hostname or "").rstrip(".")
    if host in allow_hosts or f"{host}:{_port(parts)}" in allow_hosts:
        return
    asked = (urlsplit(url).hostname or "").removeprefix("www.")
    if parts.scheme != "https":
        why = f"it leads to {parts.scheme}, not https"
    elif not any(host == name or host.endswith(f".{name}") for name in (asked, *_FRIENDS)):
        why = f"{host} is another host"
    elif not _is_public(host, parts):
        why = f"{host} has a private address"
    else:
        return
    hint = "give the right URL itself, or allow it with --allow-host HOST"
    raise ProtocolBroken(f"{shown(url)}: its redirect is refused: {why}", hint=hint)


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").rstrip("."), _port(parts)


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:  # not a number, or too large a one
        return 0


def _is_public(host: str, parts: SplitResult) -> bool:
    """Whether a host has public addresses only. Behind a proxy, or where it has none, that is not for us to say."""
    if requests.utils.select_proxy(parts.geturl(), requests.utils.get_environ_proxies(parts.geturl(), no_proxy=None)):
        return True
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return True  # the request will say so
    addresses = [ipaddress.ip_address(str(each).partition("%")[0]) for each in found]
    return all((getattr(each, "ipv4_mapped", None) or each).is_global for each in addresses)


def _facts(url: str, answer: requests.Response) -> Facts:
    """What the answer to HEAD, or a redirect on the way to it, says. A server may not know HEAD: then nothing."""
    headers = answer.headers
    size = headers.get("Content-Length", "") if answer.status_code == 200 else ""
    etag = headers.get("ETag", "") or headers.get("Last-Modified", "") if answer.status_code == 200 else ""
    sha256 = commit = ""
    for hop in (*answer.history, answer):
        size = hop.headers.get("X-Linked-Size", size)
        commit = hop.headers.get("X-Repo-Commit", commit)
        linked = hop.headers.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", linked):
            sha256 = linked
    if re.fullmatch(r"[0-9a-f]{40}", commit):
        url = re.sub(r"/resolve/[^/]+/", f"/resolve/{commit}/", url, count=1)
    return Facts(url, int(size) if size.isdigit() else None, sha256, etag, commit)


def gone(url: str, status: int) -> RemoteGone:
    return RemoteGone(f"{shown(url)}: no such file there ({status})", hint="check the name or the --mirror")


def forbidden(url: str, status: int) -> NotPermitted:
    return NotPermitted(f"{shown(url)}: not permitted ({status})", hint="set HF_TOKEN, or try another --mirror")


def raise_if_busy(answer: requests.Response) -> None:
    """Raise Retry for an answer that says to come again later."""
    if answer.status_code in _RETRY_STATUS:
        raise Retry(f"the server answered {answer.status_code}", _retry_after(answer.headers.get("Retry-After", "")))


def _retry_after(said: str) -> float:
    """Seconds to wait: the header is a number of them, or a date."""
    if said.strip().isdigit():
        return min(float(said), _MAX_WAIT)
    try:
        return min(max(email.utils.parsedate_to_datetime(said).timestamp() - time.time(), 0.0), _MAX_WAIT)
    except (TypeError, ValueError):
        return 0.0


def _short(error: Exception, where: str) -> str:
    """The error in a line, with nothing in it that is secret."""
    if isinstance(error, requests.exceptions.InvalidHeader):
        return "HF_TOKEN is not a token"
    if isinstance(error, requests.exceptions.SSLError):
        return "no trusted TLS connection"
    if isinstance(error, requests.exceptions.ConnectionError) and "read" not in str(error).lower():
        return f"no connection to {urlsplit(where).netloc}"
    return " ".join(redacted(str(error)).split())[:200] or type(error).__name__


def ping(url: str) -> None:
    """Tell a monitor (as healthchecks does it) by asking for `url`. Whether it listens is of no consequence here."""
    with suppress(OSError):  # requests' own errors are among them
        proxies = requests.utils.get_environ_proxies(url, no_proxy=None)
        requests.get(url, timeout=5, proxies=proxies).close()


def server_date(url: str) -> str:
    """What time it is for the server of `url`, as HTTP says it. Raises TryAgain when there is no answer."""
    try:
        proxies = requests.utils.get_environ_proxies(url, no_proxy=None)
        with requests.head(url, timeout=(5, 10), proxies=proxies, allow_redirects=False) as answer:
            return answer.headers.get("Date", "")
    except requests.RequestException as error:
        raise TryAgain(_short(error, shown(url)), hint="check the network or a proxy, or set HF_ENDPOINT") from None
