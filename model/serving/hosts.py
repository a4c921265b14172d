"""Host names and targets of requests: which names of this server are accepted, and targets that are complete URLs."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from model.serving.access import Access
from model.serving.requests import error_body

_ABSOLUTE = re.compile(rb"http://([^/@]+)(/.*)?", re.IGNORECASE)  # RFC 9112, 3.2.2; of a target without its query


class HostCheck:
    """Middleware that routes an absolute target by its path, and accepts the host names of `access` only.

    The name in an absolute target counts besides the Host header, so that neither can hide the other. A request
    without either is of HTTP/1.0, which no browser sends.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if target := _ABSOLUTE.fullmatch(scope["raw_path"]):
            hosts.append(target[1])
            path = target[2] or b"/"
            scope = {**scope, "path": unquote(path.decode("ascii")), "raw_path": path}
        foreign = [host for host in hosts if not self._access.has_host(host)]
        if foreign:
            message = f"this server is not {foreign[0].decode('latin-1')!r}: use {self._access.example_host}"
            await Response(error_body(400, message), 400, media_type="application/json")(scope, receive, send)
            return
        await self._app(scope, receive, send)
