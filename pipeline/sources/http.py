"""HTTP under a policy: whom to ask, how far a redirect may lead, who sees a credential, how long to be patient.

A URL that a person named is asked whatever it is. A redirect is followed only to the same server, or over https to a
host that is known to belong to it, at a public address; a credential never goes along. reference/reliability.md, 3.4.
"""

from __future__ import annotations

import email.utils
import ipaddress
import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3

from pipeline.errors import NotPermitted, ProtocolBroken, RemoteGone, TryAgain
from pipeline.runtime.redaction import redacted, shown

ATTEMPTS = 5  # in a row that bring nothing
MAX_REDIRECTS = 5
_CONNECT, _SILENCE = 10.0, 30.0  # seconds to connect, and between two pieces of an answer
_PATIENCE = 18.0  # seconds without anything new, not counting what a server asked to wait
_PAUSE, _LONGEST_PAUSE = 0.4, 10.0  # seconds before the first new try, and before any
_MAX_WAIT = 300.0  # seconds, however long a server asks to wait
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_FRIENDS = ("huggingface.co", "hf.co", "githubusercontent.com", "github.com")  # hosts of the catalogue, and theirs
_PERMANENT = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidHeader,
    requests.exceptions.MissingSchema,
)
_SILENT = (requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError)
TRANSIENT = (requests.RequestException, urllib3.exceptions.HTTPError)


class Retry(Exception):
    """An answer that may be better the next time; `wait` is how many seconds the server asked for."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class Stalled(Retry):
    """An answer that hardly came, which took long to see."""


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

    @property
    def piece(self) -> int:
        """How many bytes to take at a time, so that the wait after them is short."""
        return max(1, int(self._rate / 4))


@dataclass(frozen=True)
class Network:
    """What holds for all transfers of a command. `until` is when to give up, by `time.monotonic`; None: never.

    `allow_hosts` are hosts (`name` or `name:port`) that a redirect may lead to beside those that are known.
    """

    allow_hosts: tuple[str, ...] = ()
    bandwidth: Bandwidth | None = None
    until: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def sleep(self, seconds: float, where: str) -> None:
        """Wait, unless that would be too long. Raises TryAgain, about `where`, when the command is to end before."""
        self.check(where, seconds)
        if self.stop.wait(seconds):
            self.check(where)

    def check(self, where: str, ahead: float = 0.0) -> None:
        """Raises TryAgain when the command was stopped, or is out of time in `ahead` seconds."""
        if self.stop.is_set() or self.left() < ahead:
            why = "stopped by a signal" if self.stop.is_set() else "no time left (--deadline)"
            raise TryAgain(
                f"{where}: {why}", hint="the same command goes on with what came, where the server allows it"
            )

    def left(self) -> float:
        """Seconds until the command is out of time; less than none when it is."""
        return float("inf") if self.until is None else self.until - time.monotonic()

    def timeout(self) -> tuple[float, float]:
        """How long to wait for a connection, and for the next piece of an answer."""
        left = max(self.left(), 0.1)
        return min(_CONNECT, left), min(_SILENCE, left)

    @contextmanager
    def watching(self, answer: requests.Response) -> Iterator[None]:
        """Let an answer end where the command's time does, even while a read waits for more of it."""

        def wake() -> None:
            with suppress(OSError, ValueError, RuntimeError):  # it has just ended by itself
                answer.raw.shutdown()

        timer = None if self.until is None else threading.Timer(max(self.left(), 0.0) + 0.05, wake)
        if timer:
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            if timer:
                timer.cancel()


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
        self._network.check(self._shown)  # that the command's time is over may be what ended the answer
        self._barren += 1
        hopeless = isinstance(error, requests.exceptions.SSLError) or self._barren >= ATTEMPTS
        too_long = time.monotonic() - self._since > _PATIENCE
        if hopeless or (too_long and (self._barren > 1 or not isinstance(error, (Stalled, *_SILENT)))):
            hint = "check the network, the clock or a proxy; or give a --mirror; then run it again"
            raise TryAgain(what, hint=hint) from None
        asked = error.wait if isinstance(error, Retry) else 0.0
        pause = min(_PAUSE * 2 ** (self._barren - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
        self._network.sleep(max(asked, pause), self._shown)
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


class _Session(requests.Session):
    """A session without credentials from .netrc, which does not even look where a redirect leads: that is anything."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False  # .netrc; what else it would bring is set here, and proxies with each request
        self.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True

    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:
        return iter(())


class Connection:
    """Requests for one file: to the server of `url`, and where that sends one. Use it in a `with` block."""

    def __init__(self, network: Network, token: str = "") -> None:
        self._network, self._token = network, token
        self._session = _Session()
        self._session.headers["Accept-Encoding"] = "identity"  # the bytes as they are stored: they are what is hashed

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def facts(self, url: str) -> Facts:
        """What the server says of the file at `url`, without its bytes. Raises RemoteGone when it has no such file."""
        patience = Patience(self._network, url)
        while True:
            self._network.check(shown(url))
            try:
                with self._request("HEAD", url, {}) as answer:
                    if answer.status_code in (404, 410):
                        raise gone(url, answer.status_code)
                    raise_if_busy(answer)
                    raise_if_page(url, answer)
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
                timeout=self._network.timeout(),
                allow_redirects=False,
            )
            answer.history = list(hops)
            there = self._target(url, here, answer)
            if not there:
                return answer
            if method == "HEAD" and "X-Linked-Etag" in answer.headers and _origin(there) != _origin(url):
                return answer  # the hub has said all; where the bytes lie only a GET need go
            answer.close()
            hops.append(answer)
            if len(hops) > MAX_REDIRECTS:
                raise ProtocolBroken(f"{shown(url)}: more than {MAX_REDIRECTS} redirects", hint="check the URL")
            check_redirect(url, there, self._network.allow_hosts)
            here = there

    def _target(self, url: str, here: str, answer: requests.Response) -> str:
        """Where an answer sends one, written as it will be requested (parsers differ), or ""."""
        try:
            target = self._session.get_redirect_target(answer)
            return requests.Request("GET", urljoin(here, target)).prepare().url or "" if target else ""
        except ValueError:  # not of the characters of a URL, or not to be parsed
            raise ProtocolBroken(f"{shown(url)}: its redirect leads to no URL", hint="check the URL") from None


def check_redirect(url: str, target: str, allow_hosts: tuple[str, ...] = ()) -> None:
    """Raise ProtocolBroken unless a server that was asked for `url` may send one to `target`."""
    parts = urlsplit(target)
    if _origin(url) == _origin(target):
        return
    host, port, asked = (parts.hostname or "").rstrip("."), _port(parts), urlsplit(url).hostname or ""
    if parts.scheme in ("http", "https") and {host, f"{host}:{port}"} & {each.lower() for each in allow_hosts}:
        return
    if (parts.scheme, host, port) == ("https", asked, 443):  # the same host, with TLS, at its usual port
        return
    asked = asked.removeprefix("www.")
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
    except (OSError, UnicodeError):
        return True  # the request will say so
    addresses = [ipaddress.ip_address(str(each).partition("%")[0]) for each in found]
    return all((getattr(each, "ipv4_mapped", None) or each).is_global for each in addresses)


def _facts(url: str, answer: requests.Response) -> Facts:
    """What the answer to HEAD, or a redirect on the way to it, says. A server may not know HEAD: then nothing."""
    headers = answer.headers
    size = headers.get("Content-Length", "") if answer.status_code == 200 else ""
    etag = headers.get("ETag", "") or headers.get("Last-Modified", "") if answer.status_code == 200 else ""
    commit = ""
    for hop in (*answer.history, answer):
        size = hop.headers.get("X-Linked-Size", size)
        commit = hop.headers.get("X-Repo-Commit", commit)
    if re.fullmatch(r"[0-9a-f]{40}", commit):
        url = re.sub(r"/resolve/[^/]+/", f"/resolve/{commit}/", url, count=1)
    return Facts(url, number(size), published_hash(answer), etag, commit)


def published_hash(answer: requests.Response) -> str:
    """The sha256 that the hub publishes, on the way to where the bytes lie; or ""."""
    linked = [hop.headers.get("X-Linked-Etag", "").strip('"') for hop in (*answer.history, answer)]
    return next((each for each in reversed(linked) if re.fullmatch(r"[0-9a-f]{64}", each)), "")


def number(said: str) -> int | None:
    """A count of bytes or seconds in a header; None for anything else that a server may send."""
    return int(said) if re.fullmatch(r"[0-9]{1,18}", said.strip()) else None


def gone(url: str, status: int) -> RemoteGone:
    return RemoteGone(f"{shown(url)}: no such file there ({status})", hint="check the name or the --mirror")


def forbidden(url: str, status: int) -> NotPermitted:
    return NotPermitted(f"{shown(url)}: not permitted ({status})", hint="set HF_TOKEN, or try another --mirror")


def raise_if_page(url: str, answer: requests.Response) -> None:
    """Raise TryAgain for a web page in place of a file."""
    is_page = answer.status_code == 200 and "text/html" in answer.headers.get("Content-Type", "").lower()
    if is_page and not urlsplit(url).path.lower().endswith((".html", ".htm")):
        raise not_the_file(url, "a web page")


def not_the_file(url: str, what: str) -> TryAgain:
    hint = "a login page of the network, or a wrong --mirror?"
    return TryAgain(f"{shown(url)}: the answer is {what}", hint=hint)


def raise_if_busy(answer: requests.Response) -> None:
    """Raise Retry for an answer that says to come again later."""
    if answer.status_code in _RETRY_STATUS:
        raise Retry(f"the server answered {answer.status_code}", _retry_after(answer.headers.get("Retry-After", "")))


def _retry_after(said: str) -> float:
    """Seconds to wait: the header is a number of them, or a date."""
    if (seconds := number(said)) is not None:
        return min(seconds, _MAX_WAIT)
    try:
        return min(max(email.utils.parsedate_to_datetime(said).timestamp() - time.time(), 0.0), _MAX_WAIT)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _short(error: Exception, where: str) -> str:
    """The error in a line, with nothing in it that is secret."""
    if isinstance(error, requests.exceptions.InvalidHeader):
        return "HF_TOKEN is not a token"
    if isinstance(error, requests.exceptions.SSLError):
        return "no trusted TLS connection"
    if isinstance(error, _SILENT):
        return "no answer for too long"
    if isinstance(error, requests.exceptions.ConnectionError):
        return f"no connection to {urlsplit(where).netloc}"
    return " ".join(redacted(str(error)).split())[:200] or type(error).__name__


def ping(url: str) -> None:
    """Tell a monitor (as healthchecks does it) by asking for `url`. Whether it listens is of no consequence here."""
    with suppress(OSError), _Session() as session:  # requests' own errors are among them
        proxies = requests.utils.get_environ_proxies(url, no_proxy=None)
        session.get(url, timeout=5, proxies=proxies, stream=True).close()


def server_date(url: str) -> str:
    """What time it is for the server of `url`, as HTTP says it. Raises TryAgain when there is no answer."""
    proxies = requests.utils.get_environ_proxies(url, no_proxy=None)
    try:
        with _Session() as session, session.head(url, timeout=(5, 10), proxies=proxies) as answer:
            return answer.headers.get("Date", "")
    except requests.RequestException as error:
        raise TryAgain(_short(error, shown(url)), hint="check the network or a proxy, or set HF_ENDPOINT") from None
