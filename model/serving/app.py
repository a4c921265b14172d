"""HTTP application: OpenAI's completions, chat and models routes, the web page and its data, the report.

Every input is bounded in bytes and in seconds, and no part of a request names a file. Errors have OpenAI's format.
With a list of keys, the routes of OpenAI's API need one of them. On a loopback address only loopback host names and
`--server-name` are accepted, so that a foreign page cannot reach the server under a name of its own (DNS rebinding),
and no page of another origin can read a response.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.serving.access import Access, KeyCheck
from model.serving.chat import ChatRequest
from model.serving.chat_responses import ChatResponse
from model.serving.hosts import HostCheck
from model.serving.model_info import ModelInfo
from model.serving.requests import APIError, CompletionRequest, error_body, make_sequences, parse, tokenize_prompts
from model.serving.responses import CompletionResponse
from model.serving.scheduler import GenerationFailed, QueueFull, Scheduler, ShuttingDown
from pipeline.errors import InkstoneError, InputMissing

_MAX_BODY = 1 << 20  # bytes
_MAX_DISCARDED = 16 << 20  # bytes of an oversized body to read, so that the client receives the error
_BODY_SECONDS = 30.0  # for a client to send its body
_JSON, _CLOSE = "application/json", {"Connection": "close"}
_INLINE = (b"script", b"style")
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
_SECURITY_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}


def create_app(
    model: ModelInfo,
    scheduler: Scheduler,
    *,
    access: Access,
    report: Callable[[str], None],
    on_start: Callable[[], None],
) -> ASGIApp:
    """Build the application. `report` receives internal errors, one line each."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        scheduler.start(asyncio.get_running_loop())
        on_start()
        yield

    endpoints = _Endpoints(model, scheduler)
    app = Starlette(
        routes=[
            Route("/", endpoints.page),
            Route("/run", endpoints.run),
            Route("/report", endpoints.report),
            Route("/health", endpoints.health),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        ],
        middleware=[Middleware(HostCheck, access=access), Middleware(KeyCheck, access=access)],
        exception_handlers=_error_handlers(report),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return _SecurityHeaders(app)


class _Endpoints:
    """One method per route."""

    def __init__(self, model: ModelInfo, scheduler: Scheduler) -> None:
        self._model, self._scheduler = model, scheduler
        self._about = msgspec.json.encode({**model.about, "block_size": model.block_size})
        self._reports: dict[str, bytes] = {}  # by language
        self._rendering = asyncio.Lock()
        self._page_headers = {"Content-Security-Policy": _page_policy(model.page), "Cache-Control": "no-cache"}

    async def page(self, _: Request) -> Response:
        return Response(self._model.page, media_type="text/html", headers=self._page_headers)

    async def run(self, _: Request) -> Response:
        return _json(self._about)

    async def report(self, request: Request) -> Response:
        language = "zh" if request.query_params.get("language") == "zh" else "en"
        if self._model.report is None:
            raise APIError(404, "this server has no report of its run")
        async with self._rendering:  # one at a time; it is rendered once in each language
            if language not in self._reports:
                try:
                    self._reports[language] = await asyncio.to_thread(self._model.report, language)
                except InkstoneError as error:  # the files of the run were deleted or damaged since it was loaded
                    status = 410 if isinstance(error, InputMissing) else 503
                    return Response(f"no report of this run: {error}\n", status, media_type="text/plain")
        report = self._reports[language]
        return Response(report, media_type="text/html", headers={"Content-Security-Policy": _REPORT_POLICY})

    async def health(self, _: Request) -> Response:
        stats, model = self._scheduler.stats(), self._model
        load = {
            "active": stats.active,
            "waiting": stats.waiting,
            "rows": self._scheduler.rows,
            "places": self._scheduler.capacity,
        }
        return _json({"ok": True, "run": model.ref, "model": model.name, **model.summary, **load})

    async def models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [self._model_entry()]})

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return _json(self._model_entry())

    async def completions(self, request: Request) -> Response:
        body, warnings = parse(await _read_json(request), CompletionRequest)
        return await self._respond(request, body, {"warnings": warnings}, CompletionResponse)

    async def chat(self, request: Request) -> Response:
        body, warnings = parse(await _read_json(request), ChatRequest)
        completion, notes = await asyncio.to_thread(body.completion, self._model.tokenizer, self._model.block_size)
        notes["warnings"] = [*notes.get("warnings", ()), *warnings]
        return await self._respond(request, completion, notes, ChatResponse)

    def _model_entry(self) -> dict[str, Any]:
        return {"id": self._model.name, "object": "model", "created": self._model.created, "owned_by": "inkstone"}

    def _check_model(self, name: str) -> None:
        model = self._model
        if name not in (model.name, model.ref):
            message = f"model {name!r} not found; this server has {model.name!r}"
            raise APIError(404, message, "model", "model_not_found")

    async def _respond(
        self, request: Request, body: CompletionRequest, notes: dict[str, Any], kind: type[CompletionResponse]
    ) -> Response:
        model = self._model
        if body.model:
            self._check_model(body.model)
        prompts = await asyncio.to_thread(
            tokenize_prompts, body, model.tokenizer, self._scheduler.capacity, model.block_size
        )
        generation = self._scheduler.submit(make_sequences(body, prompts, model.tokenizer))
        present = {name: note for name, note in notes.items() if note}
        response = kind(body, prompts, generation, model.tokenizer, model.name, present)
        if body.stream:
            return _EventStream(response, self._scheduler)
        return await _complete(request, response, self._scheduler)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    data = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(data, status, headers, _JSON)


def _page_policy(page: bytes) -> str:
    """Content security policy of the page: its own inline script and style, and requests to this server."""
    script, style = (base64.b64encode(hashlib.sha256(_inline(page, name)).digest()).decode() for name in _INLINE)
    sources = f"script-src 'sha256-{script}'; style-src 'sha256-{style}'; img-src data:; connect-src 'self'"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _inline(page: bytes, name: bytes) -> bytes:
    """Return the contents of the only element `name` of a page."""
    return page.partition(b"<%s>" % name)[2].partition(b"</%s>" % name)[0]


def _error_handlers(report: Callable[[str], None]) -> dict[Any, Callable[[Request, Any], Any]]:
    async def api_error(_: Request, error: APIError) -> Response:
        return _json(error.body, error.status, _CLOSE if error.status in (408, 413) else None)

    async def queue_full(_: Request, error: QueueFull) -> Response:
        return _json(error_body(429, "the queue is full, retry later", code="queue_full"), 429, {"Retry-After": "1"})

    async def generation_failed(_: Request, error: GenerationFailed) -> Response:
        status = 503 if isinstance(error, ShuttingDown) else 500
        return _json(error_body(status, str(error)), status)

    async def http_error(request: Request, error: HTTPException) -> Response:
        messages = {404: "not found", 405: f"{request.method} is not allowed here"}
        message = messages.get(error.status_code, str(error.detail))
        return _json(error_body(error.status_code, message), error.status_code, error.headers)

    async def disconnected(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # never sent

    async def internal_error(request: Request, error: Exception) -> Response:
        report(f"error: {request.method} {request.url.path}: {type(error).__name__}: {error}"[:300])
        return _json(error_body(500, "internal server error; see the server's log"), 500)

    return {
        APIError: api_error,
        QueueFull: queue_full,
        GenerationFailed: generation_failed,
        HTTPException: http_error,
        ClientDisconnect: disconnected,
        Exception: internal_error,
    }


async def _read_json(request: Request) -> bytes:
    """Read a body of JSON. Raises APIError for another content type, and as `_read_body`."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != _JSON:  # which a page of another origin cannot send without a preflight request
        raise APIError(415, f"the content type must be {_JSON}, got {content_type or 'none'}")
    return await _read_body(request)


async def _read_body(request: Request) -> bytes:
    """Read the body. Raises APIError if it is too large or too slow, ClientDisconnect if it is incomplete."""
    too_large = APIError(413, f"the body must have at most {_MAX_BODY:,} bytes")
    size = request.headers.get("content-length", "0")
    if int(size) > _MAX_BODY and "expect" in request.headers:  # the client waits for permission to send it
        raise too_large
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                received += len(chunk)
                if received <= _MAX_BODY:
                    body += chunk
                elif received > _MAX_DISCARDED:
                    break
    except TimeoutError:
        raise APIError(408, f"the body must arrive within {_BODY_SECONDS:g} seconds") from None
    if received > _MAX_BODY:
        raise too_large
    return bytes(body)


async def _complete(request: Request, response: CompletionResponse, scheduler: Scheduler) -> Response:
    """Wait for a complete response, or stop generating when the client disconnects."""
    body = asyncio.ensure_future(response.json())
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((body, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not body.done():
            raise ClientDisconnect
        return _json(body.result())
    finally:
        scheduler.release(response.generation)
        body.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Server-sent events; the request is released whether or not the client reads all of them."""

    def __init__(self, response: CompletionResponse, scheduler: Scheduler) -> None:
        super().__init__(response.stream(), media_type="text/event-stream")
        self._generation, self._scheduler = response.generation, scheduler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._scheduler.release(self._generation)


class _SecurityHeaders:
    """Wrapper that adds `_SECURITY_HEADERS` to every response that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                defaults = (header for header in _SECURITY_HEADERS.items() if header[0] not in names)
                message["headers"] = [*message["headers"], *defaults]
            await send(message)

        await self._app(scope, receive, send_with_headers)
