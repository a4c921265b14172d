"""Timeouts of idle and slow connections, and responses to clients that have finished sending.

uvicorn has no setting for a client that sends an incomplete request or never reads its response, so this is a
subclass of its protocol. (hypercorn has a read timeout but no write timeout.) It also disconnects a client that shuts
down its sending side, which RFC 9112 (9.6) allows.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from model.serving.requests import error_body

_MAX_CONNECTIONS = 512
_REQUEST_SECONDS = 10.0  # for a request to start and its head to arrive
_WRITE_SECONDS = 30.0  # for the client to read sent data
_CHECK_SECONDS = 0.2  # between checks whether a client that has finished sending still receives
_RESPONSE_START = b"HTTP/1.1 "  # of every response
_COMMENT = b":\n\n"  # in server-sent events


class _Connection(h11.Connection):
    """State of a connection.

    `sent` counts the bytes of `_RESPONSE_START` that were sent before the next response. Each response sets
    `is_stream`: true for an event stream, the only kind without a length.
    """

    sent = 0
    is_stream: bool

    def send(self, event: Any) -> Any:
        if isinstance(event, h11.Response):
            self.is_stream = all(name != b"content-length" for name, _ in event.headers)
        data = super().send(event)
        if data:
            data, self.sent = data[self.sent :], 0
        return data


class TimeoutProtocol(H11Protocol):
    """HTTP/1.1 connection that is closed on a late request, on invalid HTTP, or when the client does not read.

    A client that has finished sending gets its response. A client that has closed its socket looks the same, until it
    answers data with a reset. Therefore, while the response is not ready, its first bytes are sent one at a time, and
    while an event stream waits, comments are sent.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn: _Connection = _Connection(h11.SERVER)
        self._check_timer: asyncio.TimerHandle | None = None
        self._checks = 0
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

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return False to close the connection, True to keep it until the response is complete."""
        if self._is_idle:
            is_incomplete = self.conn.our_state is h11.IDLE and bool(self.conn.trailing_data[0])
        else:
            is_incomplete = self.cycle.more_body and not self.cycle.response_started
        if is_incomplete:
            self.send_400_response("The request is incomplete.")
            if self.cycle:
                self.cycle.disconnected = True
        elif not self._is_idle:
            self._check_timer = self._check_timer or self.loop.call_later(_CHECK_SECONDS, self._check_client)
            return True
        return False

    def on_response_complete(self) -> None:
        super().on_response_complete()  # begins the response to the next request if that has arrived
        if self._check_timer and not self.eof_received():
            self.transport.close()

    def _check_client(self) -> None:
        """Close the connection if the client has closed its socket; send a byte or a comment at growing intervals."""
        self._check_timer = self.loop.call_later(_CHECK_SECONDS, self._check_client)
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        self._checks += 1
        if self._checks.bit_count() > 1 or self._checks == 1 or self._is_idle or self.flow.write_paused:
            return
        if not self.cycle.response_started:
            self.transport.write(_RESPONSE_START[self.conn.sent : self.conn.sent + 1])
            self.conn.sent = min(self.conn.sent + 1, len(_RESPONSE_START))
        elif self.conn.is_stream:
            self.transport.write(self.conn.send(h11.Data(data=_COMMENT)))

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
        for timer in (self._request_timer, self._write_timer, self._check_timer):
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
