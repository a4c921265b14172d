"""Fetch a small file or an answer of an API into memory, by the rules of `http.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import requests

from pipeline.errors import InkstoneError, ProtocolBroken
from pipeline.runtime.redaction import redact_url
from pipeline.sources.http import (
    TRANSIENT,
    HTTPClient,
    Network,
    Retry,
    RetryPolicy,
    Stalled,
    forbidden,
    not_found,
    parse_count,
    raise_if_busy,
    raise_if_page,
)

MAX_BYTES = 64 << 20
_PIECE = 1 << 16
_SLOW_RATE = 1 << 10  # bytes per second; a response that is slower counts as stalled


@dataclass(frozen=True)
class SmallResponse:
    """The body and the headers of a response with status 200."""

    body: bytes
    headers: Mapping[str, str]


def fetch_small(
    url: str,
    network: Network,
    *,
    token: str = "",
    refusal: Callable[[requests.Response], InkstoneError | None] = lambda response: None,
) -> SmallResponse:
    """Return the response to a GET of `url`, of at most MAX_BYTES.

    `refusal` may give the error for a response that is not 200 and not worth a retry. Without it they are RemoteGone
    (404, 410), NotPermitted (401, 403) and ProtocolBroken. Raises TryAgain if a later attempt may succeed.
    """
    retries = RetryPolicy(network, url.partition("?")[0])
    with HTTPClient(network, token) as client:
        while True:
            network.raise_if_stopped(redact_url(url))
            try:
                with client.get(url, {}) as response, network.watch(response):
                    _check_status(url, response, refusal)
                    return SmallResponse(_read(url, response, network), dict(response.headers))
            except (*TRANSIENT, Retry) as error:
                retries.wait(error)


def _check_status(
    url: str, response: requests.Response, refusal: Callable[[requests.Response], InkstoneError | None]
) -> None:
    status = response.status_code
    raise_if_busy(response)
    raise_if_page(url, response)
    if status != 200:
        if error := refusal(response):
            raise error
        if status in (404, 410):
            raise not_found(url, status)
        if status in (401, 403):
            raise forbidden(url, status)
        raise ProtocolBroken(f"{redact_url(url)}: the server answered {status}", hint="check the URL and --mirror")
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise ProtocolBroken(
            f"{redact_url(url)}: the server compressed the response ({encoding[:20]})", hint="try another --mirror"
        )


def _read(url: str, response: requests.Response, network: Network) -> bytes:
    """Return the complete body, read within the bandwidth limit."""
    read: Callable[[int], bytes] = response.raw.read1
    size = min(_PIECE, network.bandwidth.chunk_size) if network.bandwidth else _PIECE
    body, start, max_seconds = bytearray(), time.monotonic(), network.timeout()[1]
    while piece := read(size):
        body += piece
        if len(body) > MAX_BYTES:
            raise ProtocolBroken(
                f"{redact_url(url)}: the response exceeds {MAX_BYTES >> 20} MiB", hint="check the URL and --mirror"
            )
        network.raise_if_stopped(redact_url(url))
        seconds = time.monotonic() - start
        if not network.bandwidth and seconds > max_seconds and len(body) < seconds * _SLOW_RATE:
            raise Stalled(f"received only {len(body):,} bytes in {seconds:.0f} seconds")
        if network.bandwidth:
            network.sleep(network.bandwidth.delay(len(piece)), redact_url(url))
    network.raise_if_stopped(redact_url(url))  # which may have ended the response
    expected = parse_count(response.headers.get("Content-Length", ""))
    if expected is not None and len(body) != expected:
        raise Retry(f"received {len(body):,} of {expected:,} bytes")
    return bytes(body)
