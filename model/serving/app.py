"""What the server answers: OpenAI's two routes, and a page to write with and what it needs.

Whatever comes in has a bound in bytes and in seconds, and no part of a request ever names a file. Errors have OpenAI's
shape. There is no authentication: on a loopback address only names of this machine are answered, so that no page from
elsewhere reaches the server by a name of its own (DNS rebinding), and no page of another origin can read an answer.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.generation.session import Session
from model.runs.run import read_result
from model.serving.requests import Asked, Refused, continuations, error_body, parse, read_prompts
from model.serving.responses import Answer
from model.serving.scheduler import Closing, Desk, Full, Unfinished
from pipeline.tokenizers import Tokenizer

_BODY, _DISCARDED = 1 << 20, 16 << 20  # bytes that are read, and that are let pass so that the client reads why not
_PATIENCE = 30.0  # seconds in which a body must come
_LOCAL = re.compile(rb"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
_JSON, _CLOSE = "application/json", {"Connection": "close"}
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}


def app(shown: Shown, desk: Desk, *, local: bool, report: Callable[[str], None], opened: Callable[[], None]) -> ASGIApp:
    """The application. `opened` is called when it begins to answer; `report` is told of its own failures."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        desk.open(asyncio.get_running_loop())
        opened()
        yield

    made = FastAPI(openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    _add_errors(made, report)
    page_headers = {"Content-Security-Policy": _policy(shown.page), "Cache-Control": "no-cache"}

    @made.api_route("/", methods=["GET", "HEAD"])
    async def page() -> Response:
        return Response(shown.page, media_type="text/html", headers=page_headers)

    @made.api_route("/curve.svg", methods=["GET", "HEAD"])
    async def curve() -> Response:
        if shown.curve is None:
            raise Refused(404, "this run has no loss curve")
        return Response(shown.curve, media_type="image/svg+xml", headers={"Cache-Control": "no-cache"})

    @made.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        counts = desk.counts()
        busy = {"active": counts.active, "waiting": counts.waiting, "rows": desk.rows, "places": desk.places}
        has = {"curve": shown.curve is not None}
        return _json({"ok": True, "run": shown.ref, "model": shown.name, **shown.facts, **has, **busy})

    @made.api_route("/v1/models", methods=["GET", "HEAD"])
    async def models() -> Response:
        entry = {"id": shown.name, "object": "model", "created": shown.since, "owned_by": "inkstone"}
        return _json({"object": "list", "data": [entry]})

    @made.post("/v1/completions")
    async def completions(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != _JSON:  # which no page of another origin may send without asking first
            raise Refused(415, f"the body must be {_JSON}")
        asked = parse(await _body(request))
        if asked.model not in ("", shown.name, shown.ref):
            raise Refused(
                404, f"there is no model {asked.model!r} here, but {shown.name!r}", "model", "model_not_found"
            )
        prompts = await asyncio.to_thread(read_prompts, asked, shown.tokenizer, desk.places)
        order = desk.order(continuations(asked, prompts, shown.tokenizer))
        return await _respond(request, asked, Answer(asked, prompts, order, shown.tokenizer, shown.name), desk)

    return Door(made, local)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    data = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(data, status, headers, _JSON)


def _policy(page: bytes) -> str:
    """What the page may do: run its own script, and talk to this server."""
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(page)]
    scripts = " ".join(f"'sha256-{each}'" for each in hashes)
    allowed = f"script-src {scripts}; style-src 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _add_errors(made: FastAPI, report: Callable[[str], None]) -> None:
    @made.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _json(error.body, error.status, _CLOSE if error.status in (408, 413) else None)

    @made.exception_handler(Full)
    async def full(_: Request, error: Full) -> Response:
        what = "too many texts are being written, try again in a moment"
        return _json(error_body(429, what, code="queue_full"), 429, {"Retry-After": "1"})

    @made.exception_handler(Unfinished)
    async def unfinished(_: Request, error: Unfinished) -> Response:
        status = 503 if isinstance(error, Closing) else 500
        return _json(error_body(status, str(error)), status)

    @made.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        what = {404: "there is nothing at this path", 405: f"{request.method} is not for this path"}
        told = what.get(error.status_code, str(error.detail))
        return _json(error_body(error.status_code, told), error.status_code, error.headers)

    @made.exception_handler(ClientDisconnect)
    async def left(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody reads

    @made.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        report(f"error: {request.method} {request.url.path}: {type(error).__name__}: {error}"[:300])
        return _json(error_body(500, "a bug of this server; what it was is told where it runs"), 500)


async def _body(request: Request) -> bytes:
    """The body. Raises Refused where it is too large or comes too slowly, ClientDisconnect where it ends early."""
    too_large = Refused(413, f"the body is larger than {_BODY:,} bytes")
    size = request.headers.get("content-length", "0")
    if int(size) > _BODY and "expect" in request.headers:  # which waits for leave to send it
        raise too_large
    body, seen = bytearray(), 0
    try:
        async with asyncio.timeout(_PATIENCE):
            async for part in request.stream():
                seen += len(part)
                if seen <= _BODY:
                    body += part
                elif seen > _DISCARDED:
                    break
    except TimeoutError:
        raise Refused(408, "the body comes too slowly") from None
    if seen > _BODY:
        raise too_large
    return bytes(body)


async def _respond(request: Request, asked: Asked, answer: Answer, desk: Desk) -> Response:
    if asked.stream:
        return _Events(answer, desk)
    work = asyncio.ensure_future(answer.whole())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return _json(work.result())
    finally:
        desk.leave(answer.order)
        work.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    """Until the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Events(StreamingResponse):
    """An answer as it comes. Whether it is read to its end or not, its places are given back."""

    def __init__(self, answer: Answer, desk: Desk) -> None:
        super().__init__(answer.events(), media_type="text/event-stream")
        self._leave = lambda: desk.leave(answer.order)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


class Door:
    """Turns away who asked for another host, and puts on every answer what browsers are to keep to."""

    def __init__(self, inner: ASGIApp, local: bool) -> None:
        self._inner, self._local = inner, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in _HEADERS.items() if each[0] not in there)]
            await send(message)

        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        if self._local and not _LOCAL.fullmatch(host):
            refusal = _json(error_body(421, "this server answers to names of this machine only"), 421)
            await refusal(scope, receive, sending)
            return
        await self._inner(scope, receive, sending)


@dataclass(frozen=True)
class Shown:
    """The names of a run, what there is to say of it, its loss curve if it has one, and the page around all that."""

    name: str
    ref: str
    tokenizer: Tokenizer
    facts: Mapping[str, Any]
    page: bytes
    curve: bytes | None
    since: int


def look(session: Session) -> Shown:
    """Read what is shown of a run."""
    run, tokenizer, result = session.run, session.tokenizer, read_result(session.run.path)
    facts = {
        "parameters": result.parameters,
        "steps": result.steps,
        "bits_per_char": result.best_bits_per_char if session.checkpoint == "best" else result.bits_per_char,
        "tokenizer": {"name": tokenizer.name, "kind": tokenizer.kind, "ids": tokenizer.vocab_size},
        "trained_on": next((entry.name for entry in run.manifest.inputs if entry.role == "tokens"), ""),
    }
    page, curve = Path(__file__).with_name("page.html"), run.file("loss.svg")
    drawn = curve.read_bytes() if curve.is_file() else None
    return Shown(run.manifest.name, run.ref, tokenizer, facts, page.read_bytes(), drawn, int(time.time()))
