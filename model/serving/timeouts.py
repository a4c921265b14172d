"""Connections: uvicorn's, with an end to each wait for a client that does nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from model.serving.requests import error_body

_CONNECTIONS = 512  # at once
_ASKING, _TAKING = 10.0, 30.0  # seconds in which a request must begin and come, and in which what is sent must be taken


class Connection(H11Protocol):
    """A connection that ends when its client sends no request, sends no HTTP, or takes nothing of what it asked for."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._asking: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` says whenever something is not taken
        if len(self.connections) > _CONNECTIONS:
            transport.abort()
        self._wait()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # nonsense came in the middle of an answer
            self.transport.abort()
        self._wait()

    def _wait(self) -> None:
        """Give the client so long for a request, from when it has begun to be silent or to send a part of one."""
        if not self._idle and self._asking:
            self._asking.cancel()
            self._asking = None
        elif self._idle and not self._asking:
            self._asking = self.loop.call_later(_ASKING, self._end)

    def _end(self) -> None:
        self._asking = None
        if self._idle:
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self._taking or self.loop.call_later(_TAKING, self.transport.abort)

    def resume_writing(self) -> None:
        if self._taking:
            self._taking.cancel()
            self._taking = None
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._asking, self._taking):
            if timer:
                timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, in OpenAI's shape."""
        body = error_body(400, msg)
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
