"""HTTP requests with deadlines, retries, and credentials that are sent to one server only.

In the order of this file: `Network` (the limits of a command), `RetryPolicy`, `HTTPClient`, headers and errors.
`redirects.py` decides which redirects are followed. docs/design/reliability.md, 3.4.
"""

from __future__ import annotations

import email.utils
import functools
import importlib.util
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from pipeline.errors import InkstoneError, NotPermitted, ProtocolBroken, RemoteGone, TryAgain, missing_package
from pipeline.runtime.redaction import redact, redact_url
from pipeline.sources.redirects import check_redirect, origin
from pipeline.sources.watchdog import send_in_time, shut_down_when

ATTEMPTS = 5  # in a row without new bytes
MAX_REDIRECTS = 5
_CONNECT_TIMEOUT, _READ_TIMEOUT = 10.0, 30.0  # seconds
_MAX_IDLE = 18.0  # seconds without new bytes, not counting waits that a server requested
_PAUSE = 0.4  # maximum seconds before the first retry, doubled before each further one
_MAX_WAIT = 300.0  # seconds, of the wait that a server requests
_RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PERMANENT = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidHeader,
    requests.exceptions.MissingSchema,
)
_READ_TIMED_OUT = (requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError)
TRANSIENT = (requests.RequestException, urllib3.exceptions.HTTPError)


class Retry(Exception):
    """A response that may succeed on a retry, after `wait` seconds if the server requested that."""

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait


class Stalled(Retry):
    """A response that was too slow, or stopped."""


class BandwidthLimit:
    """Limit in bytes per second, shared by all transfers."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free_at, self._lock = rate, 0.0, threading.Lock()

    def delay(self, count: int) -> float:
        """Return how many seconds to wait after `count` bytes."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._rate
            return self._free_at - time.monotonic()

    @property
    def chunk_size(self) -> int:
        """Bytes to read at a time, so that the wait after them is short."""
        return max(1, int(self._rate / 4))


@dataclass(frozen=True)
class Network:
    """Limits that apply to all transfers of a command.

    `deadline` is in `time.monotonic` seconds (None: no deadline). `allow_hosts` are hosts (`name` or
    `name:port`) to which a redirect may lead besides the known ones. `attempts` is the number of requests in a row that
    may fail without new bytes; the timeouts are in seconds (None: 10 and 30).
    """

    allow_hosts: tuple[str, ...] = ()
    bandwidth: BandwidthLimit | None = None
    deadline: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    attempts: int = ATTEMPTS
    connect_timeout: float | None = None
    read_timeout: float | None = None

    def sleep(self, seconds: float, subject: str) -> None:
        """Wait. Raises TryAgain, about `subject`, if the command must end before or during the wait."""
        self.raise_if_stopped(subject, seconds)
        if self.stop.wait(seconds):
            self.raise_if_stopped(subject)

    def raise_if_stopped(self, subject: str, seconds_ahead: float = 0.0) -> None:
        """Raise TryAgain, about `subject`, if the command was stopped or its deadline is within `seconds_ahead`."""
        if self.stop.is_set() or self.seconds_left() < seconds_ahead:
            reason = "stopped by a signal" if self.stop.is_set() else "no time left (--deadline)"
            raise TryAgain(
                f"{subject}: {reason}",
                hint="run the same command again; it resumes the download if the server allows that",
            )

    def seconds_left(self) -> float:
        """Return the seconds until the deadline, negative after it."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def timeout(self) -> tuple[float, float]:
        """Return the timeouts in seconds for the connection and for each read."""
        seconds = max(self.seconds_left(), 0.1)
        return min(self.connect_timeout or _CONNECT_TIMEOUT, seconds), min(self.read_timeout or _READ_TIMEOUT, seconds)

    def send(self, subject: str, send: Callable[[], requests.Response]) -> requests.Response:
        """Return `send()`, a request with `timeout()`. Its headers must be complete in the sum of both timeouts.

        Raises TryAgain, about `subject`, if the command must end before.
        """
        return send_in_time(send, sum(self.timeout()), lambda: self.raise_if_stopped(subject))

    def watch(self, response: requests.Response) -> AbstractContextManager[None]:
        """Shut down a response when the command must end, even while a read waits for more of it."""
        return shut_down_when(lambda: self.stop.is_set() or self.seconds_left() < 0, response)


class RetryPolicy:
    """Decide whether to repeat a request that failed, and wait before it with exponential backoff.

    It gives up after `attempts` failures of the network, or after 18 seconds, without new bytes.
    """

    def __init__(self, network: Network, url: str) -> None:
        self._network, self._shown_url = network, redact_url(url)
        self.reset()

    def reset(self) -> None:
        """Start counting again, after new bytes."""
        self._failures, self._start = 0, time.monotonic()

    def wait(self, error: Exception) -> None:
        """Wait before the next attempt. Raises TryAgain after too many, ProtocolBroken if no retry can succeed."""
        problem = f"{self._shown_url}: {_one_line(error, self._shown_url)}"
        if isinstance(error, _PERMANENT):
            raise ProtocolBroken(problem, hint="check the URL or --mirror") from None
        self._network.raise_if_stopped(self._shown_url)  # the deadline itself may have ended the response
        self._failures += 1
        is_final = isinstance(error, requests.exceptions.SSLError) or self._failures >= self._network.attempts
        is_late = time.monotonic() - self._start > _MAX_IDLE
        if is_final or (is_late and (self._failures > 1 or not isinstance(error, (Stalled, *_READ_TIMED_OUT)))):
            hint = "check the network, the clock and the proxy, or pass a --mirror; then run the same command again"
            raise TryAgain(problem, hint=hint) from None
        requested = error.wait if isinstance(error, Retry) else 0.0
        pause = _PAUSE * 2 ** (self._failures - 1) * random.uniform(0.5, 1.0)
        self._network.sleep(max(requested, pause), self._shown_url)
        self._start += requested


@dataclass(frozen=True)
class RemoteFile:
    """Metadata of a file that the server sends before its content.

    `url` is the URL to download it from, with the commit in it if there is one. `size`, `sha256` and `etag` (an ETag of
    any kind, or else a date) are None or "" if the server does not send them.
    """

    url: str
    size: int | None = None
    sha256: str = ""
    etag: str = ""
    commit: str = ""

    @property
    def strong_etag(self) -> str:
        """An ETag that is valid for range requests, or ""."""
        return self.etag if self.etag.startswith('"') else ""

    @property
    def can_resume(self) -> bool:
        """True if a later response can be verified to be of the same file."""
        return bool(self.sha256 or self.strong_etag)


class _Session(requests.Session):
    """Session without credentials from .netrc, and without requests' own handling of redirects."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False  # ignores .netrc; the CA bundle is set here, and proxies with each request
        self.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True

    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:
        return iter(())


class HTTPClient:
    """Requests for one file, to the server of its URL and along permitted redirects. Use it in a `with` block."""

    def __init__(self, network: Network, token: str = "") -> None:
        self._network, self._token = network, token
        self._session = _Session()
        self._session.headers["Accept-Encoding"] = "identity"  # the bytes as they are stored, which are hashed

    def __enter__(self) -> HTTPClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def describe(self, url: str) -> RemoteFile:
        """Return the metadata of the file at `url`, by a HEAD request. Raises RemoteGone if there is no such file."""
        retries = RetryPolicy(self._network, url)
        while True:
            self._network.raise_if_stopped(redact_url(url))
            try:
                with self._request("HEAD", url, {}) as response:
                    if response.status_code in (404, 410):
                        raise not_found(url, response.status_code)
                    raise_if_busy(response)
                    raise_if_page(url, response)
                    return _remote_file(url, response)
            except (*TRANSIENT, Retry) as error:
                retries.wait(error)

    def get(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        """Return the response to a GET, after permitted redirects, with its body still unread."""
        return self._request("GET", url, headers)

    def _request(self, method: str, url: str, headers: Mapping[str, str]) -> requests.Response:
        hops: list[requests.Response] = []
        current_url = url
        while True:
            send = functools.partial(self._send, method, url, current_url, headers)
            response = self._network.send(redact_url(url), send)
            response.history = list(hops)
            target = self._redirect_target(url, current_url, response)
            if not target:
                return response
            if method == "HEAD" and "X-Linked-Etag" in response.headers and origin(target) != origin(url):
                return response  # the hub's metadata is complete; only a GET needs the storage server
            response.close()
            hops.append(response)
            if len(hops) > MAX_REDIRECTS:
                raise ProtocolBroken(f"{redact_url(url)}: more than {MAX_REDIRECTS} redirects", hint="check the URL")
            current_url = target

    def _send(self, method: str, url: str, current_url: str, headers: Mapping[str, str]) -> requests.Response:
        """Send one request: to `url`, or to `current_url`, to which it was redirected."""
        if current_url != url:
            check_redirect(url, current_url, self._network.allow_hosts)
        sends_token = self._token and origin(current_url) == origin(url)
        credentials = {"Authorization": f"Bearer {self._token}"} if sends_token else {}
        return self._session.request(
            method,
            current_url,
            headers={**headers, **credentials},
            proxies=_proxies(current_url),
            stream=True,
            timeout=self._network.timeout(),
            allow_redirects=False,
        )

    def _redirect_target(self, url: str, current_url: str, response: requests.Response) -> str:
        """Return the URL that a response redirects to, spelled as it will be requested (parsers differ), or ""."""
        try:
            location = self._session.get_redirect_target(response)
            if not location:
                return ""
            return requests.Request("GET", urljoin(current_url, location)).prepare().url or ""
        except ValueError:  # invalid characters, or not parsable
            raise ProtocolBroken(f"{redact_url(url)}: its redirect is not a valid URL", hint="check the URL") from None


def _remote_file(url: str, response: requests.Response) -> RemoteFile:
    """Read the metadata in the response to HEAD and in the redirects to it; empty if a server rejects HEAD."""
    headers = response.headers
    size = headers.get("Content-Length", "") if response.status_code == 200 else ""
    etag = headers.get("ETag", "") or headers.get("Last-Modified", "") if response.status_code == 200 else ""
    commit = ""
    for hop in (*response.history, response):
        size = hop.headers.get("X-Linked-Size", size)
        commit = hop.headers.get("X-Repo-Commit", commit)
    if re.fullmatch(r"[0-9a-f]{40}", commit):
        url = re.sub(r"/resolve/[^/]+/", f"/resolve/{commit}/", url, count=1)
    return RemoteFile(url, parse_count(size), published_sha256(response), etag, commit)


def published_sha256(response: requests.Response) -> str:
    """Return the sha256 that the hub sends with its redirect to the content, or ""."""
    etags = [hop.headers.get("X-Linked-Etag", "").strip('"') for hop in (*response.history, response)]
    return next((etag for etag in reversed(etags) if re.fullmatch(r"[0-9a-f]{64}", etag)), "")


def parse_count(value: str) -> int | None:
    """Parse a count of bytes or seconds in a header; return None for anything else."""
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value.strip()) else None


def not_found(url: str, status: int) -> RemoteGone:
    return RemoteGone(f"{redact_url(url)}: no such file on the server ({status})", hint="check the name and --mirror")


def forbidden(url: str, status: int) -> NotPermitted:
    terms = "accept the terms of the dataset on its page, then " if "/datasets/" in url else ""
    hint = f"{terms}set HF_TOKEN, or try another --mirror"
    return NotPermitted(f"{redact_url(url)}: access denied ({status})", hint=hint)


def raise_if_page(url: str, response: requests.Response) -> None:
    """Raise TryAgain for a web page in place of a file."""
    is_page = response.status_code == 200 and "text/html" in response.headers.get("Content-Type", "").lower()
    if is_page and not urlsplit(url).path.lower().endswith((".html", ".htm")):
        raise wrong_content(url, "a web page")


def wrong_content(url: str, content: str) -> TryAgain:
    hint = "check for a login page of this network, and check --mirror"
    return TryAgain(f"{redact_url(url)}: the server sent {content}, not the file", hint=hint)


def raise_if_busy(response: requests.Response) -> None:
    """Raise Retry for a status that is worth a retry."""
    if response.status_code in _RETRY_STATUS:
        wait = _retry_after(response.headers.get("Retry-After", ""))
        raise Retry(f"the server answered {response.status_code}", wait)


def _retry_after(value: str) -> float:
    """Return the seconds to wait; the header is a number of seconds or a date."""
    if (seconds := parse_count(value)) is not None:
        return min(seconds, _MAX_WAIT)
    try:
        return min(max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0), _MAX_WAIT)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _one_line(error: Exception, shown_url: str) -> str:
    """Return the error in one line without secrets."""
    if isinstance(error, requests.exceptions.InvalidHeader):
        cause = error.args[0] if error.args else None
        if isinstance(cause, urllib3.exceptions.InvalidHeader):  # in the response: Content-Length twice
            return " ".join(f"the server sent an invalid header: {redact(str(cause))}".split())[:200]
        return "HF_TOKEN is not a valid token"
    if isinstance(error, requests.exceptions.SSLError):
        return "no trusted TLS connection"
    if isinstance(error, _READ_TIMED_OUT):
        return "no answer for too long"
    if isinstance(error, requests.exceptions.ConnectionError):
        return f"no connection to {urlsplit(shown_url).netloc}"
    return " ".join(redact(str(error)).split())[:200] or type(error).__name__


def ping(url: str, stop: threading.Event) -> None:
    """Request `url` to notify a monitor such as healthchecks, in five seconds at most. Failures are ignored."""
    limits = Network(connect_timeout=2.0, read_timeout=3.0, stop=stop)
    if stop.is_set():  # the command must end soon
        limits = Network(connect_timeout=0.25, read_timeout=0.25)
    with suppress(OSError, InkstoneError):  # includes the errors of requests
        _probe("GET", url, limits)


def server_date(url: str, stop: threading.Event) -> str:
    """Return the Date header of the server of `url`, or "". Raises TryAgain if it does not answer in ten seconds."""
    try:
        return _probe("HEAD", url, Network(connect_timeout=4.0, read_timeout=6.0, stop=stop)).headers.get("Date", "")
    except requests.RequestException as error:
        raise TryAgain(
            _one_line(error, redact_url(url)), hint="check the network or a proxy, or set HF_ENDPOINT"
        ) from None


def _proxies(url: str) -> dict[str, str]:
    """Return the proxies of the environment. Raises BadConfig for a SOCKS proxy if PySocks is not installed."""
    proxies: dict[str, str] = requests.utils.get_environ_proxies(url, no_proxy=None)
    is_socks = (requests.utils.select_proxy(url, proxies) or "").lower().startswith("socks")
    if is_socks and importlib.util.find_spec("socks") is None:
        raise missing_package("PySocks")
    return proxies


def _probe(method: str, url: str, network: Network) -> requests.Response:
    """Return the headers of a response to a request without credentials, whatever its status."""
    proxies, timeout = _proxies(url), network.timeout()
    with _Session() as session:
        send = functools.partial(session.request, method, url, timeout=timeout, proxies=proxies, stream=True)
        response = network.send(redact_url(url), send)
        response.close()
    return response
