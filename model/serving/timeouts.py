"""Timeouts of idle and slow connections.

uvicorn's settings have none for a client that sends an incomplete request or never reads its response, so this is a
subclass of its protocol. (hypercorn has a read timeout but no write timeout.)
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from model.serving.requests import error_body

_MAX_CONNECTIONS = 512
_REQUEST_SECONDS = 10.0  # for a request to start and its head to arrive
_WRITE_SECONDS = 30.0  # for the client to read sent data


class TimeoutProtocol(H11Protocol):
    """HTTP/1.1 connection that is closed on a late request, on invalid HTTP, or when the client does not read."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._request_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` is called whenever data is not read
        if len(self.connections) > _MAX_CONNECTIONS:
            transport.abort()
        self._update_request_timer()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # invalid data during a response
            self.transport.abort()
        self._update_request_timer()

    def _update_request_timer(self) -> None:
        """Run the timer while no request is being answered; partial data does not restart it."""
        if not self._is_idle and self._request_timer:
            self._request_timer.cancel()
            self._request_timer = None
        elif self._is_idle and not self._request_timer:
            self._request_timer = self.loop.call_later(_REQUEST_SECONDS, self._on_request_timeout)

    def _on_request_timeout(self) -> None:
        self._request_timer = None
        if self._is_idle:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self._write_timer or self.loop.call_later(_WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._request_timer, self._write_timer):
            if timer:
                timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP in OpenAI's error format instead of uvicorn's plain text."""
        body = error_body(400, msg)
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
