"""Connections: their number, slow clients, and clients that have finished sending. In one process, on real sockets."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from model.serving.requests import error_body
from model.serving.timeouts import TimeoutProtocol

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
SECONDS = 10.0  # for what should happen at once
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class ShiftedLoop(asyncio.SelectorEventLoop):
    """Event loop with a clock that a test puts forward, besides the real time that passes."""

    shift = 0.0

    def time(self) -> float:
        return super().time() + self.shift

    async def put_forward(self, seconds: float) -> None:
        await self.settle()
        self.shift += seconds
        await self.settle()

    async def settle(self) -> None:
        """Let sockets and timers that are ready run."""
        for _ in range(5):
            await asyncio.sleep(0.002)


class Site:
    """A server whose application reads a request, and sends `body` as soon as `ready` is set.

    With `is_stream` it sends the head at once. `disconnected` is set when the application learns of that.
    """

    def __init__(self, body: bytes = b"text", is_stream: bool = False) -> None:
        self.body, self.is_stream = body, is_stream
        self.ready, self.disconnected = asyncio.Event(), asyncio.Event()
        self.state = ServerState()
        self.clients: list[Client] = []  # a client that is not referenced is closed

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [] if self.is_stream else [(b"content-length", b"%d" % len(self.body))]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        if self.is_stream:
            await send(start)
        ready, gone = asyncio.ensure_future(self.ready.wait()), asyncio.ensure_future(receive())
        await asyncio.wait((ready, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.disconnected.set()
        ready.cancel()
        gone.cancel()
        if not self.is_stream:
            await send(start)
        await send({"type": "http.response.body", "body": self.body})

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(self.app, interface="asgi3", lifespan="off", log_config=None, ws="none")
        server = await loop.create_server(
            lambda: TimeoutProtocol(config, self.state, {}, loop), "127.0.0.1", 0, backlog=1024
        )
        self.port = server.sockets[0].getsockname()[1]
        yield
        server.close()
        for connection in list(self.state.connections):
            connection.transport.abort()
        await asyncio.sleep(0.01)

    async def connect(self, data: bytes = b"", **options: Any) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **options)
        writer.write(data)
        await writer.drain()
        self.clients.append((reader, writer))
        return reader, writer


def run(test: Callable[[ShiftedLoop], Coroutine[Any, Any, None]]) -> None:
    loop, errors = ShiftedLoop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(test(loop))
    assert not errors


async def read_rest(reader: asyncio.StreamReader) -> bytes:
    """Read to the end, which may be a reset."""
    reply = bytearray()
    with suppress(ConnectionError):
        while part := await asyncio.wait_for(reader.read(1 << 16), SECONDS):
            reply += part
    return bytes(reply)


def is_closed(client: Client) -> bool:
    return client[0].at_eof() or client[0].exception() is not None


# Number of connections, and slow clients


def test_512_connections_are_kept_and_one_more_is_closed() -> None:
    async def test(loop: ShiftedLoop) -> None:
        site = Site()
        site.ready.set()
        async with site.listen():
            clients = [await site.connect() for _ in range(512)]
            assert await read_rest((await site.connect(GET))[0]) == b""
            assert not any(map(is_closed, clients))
            for reader, writer in (clients[0], clients[-1]):
                writer.write(GET)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            clients[0][1].close()
            while len(site.state.connections) == 512:
                await asyncio.sleep(0.001)
            reader, _ = await site.connect(GET)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("too few file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        run(test)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_request_must_begin_and_its_head_arrive_within_ten_seconds() -> None:
    async def test(loop: ShiftedLoop) -> None:
        site = Site()
        async with site.listen():
            silent, partial, answered = await site.connect(), await site.connect(GET[:-2]), await site.connect(GET)
            await loop.put_forward(8.5)
            partial[1].write(b"A: b\r\n")  # does not begin the time anew
            await loop.put_forward(0.6)
            assert not any(map(is_closed, (silent, partial, answered)))
            await loop.put_forward(1.6)
            assert is_closed(silent)
            assert is_closed(partial)
            assert not is_closed(answered)  # its response may take any time
            site.ready.set()
            assert (await answered[0].readline()).startswith(b"HTTP/1.1 200 ")

    run(test)


def test_connection_stays_open_after_a_request_that_arrived_in_parts() -> None:
    async def test(loop: ShiftedLoop) -> None:
        site = Site()
        site.ready.set()
        async with site.listen():
            reader, writer = await site.connect()
            for part in (GET[:9], GET[9:20], GET[20:]):
                writer.write(part)
                await loop.put_forward(4)
            await reader.readuntil(b"text")
            assert not is_closed((reader, writer))  # 12 s after the connection, 4 s after the response
            writer.write(GET)
            await reader.readuntil(b"text")

    run(test)


def test_client_has_thirty_seconds_to_read_what_was_sent() -> None:
    async def test(loop: ShiftedLoop) -> None:
        site = Site(bytes(32 << 20))
        site.ready.set()
        async with site.listen():
            await site.connect(GET, limit=1 << 10)
            await loop.put_forward(0.1)
            assert len(site.state.connections) == 1
            await loop.put_forward(29)
            assert len(site.state.connections) == 1
            await loop.put_forward(1.7)
            assert not site.state.connections

    run(test)


def test_time_to_read_begins_anew_once_everything_was_read() -> None:
    async def test(loop: ShiftedLoop) -> None:
        size = 32 << 20
        site = Site(bytes(size))
        site.ready.set()
        async with site.listen():
            reader, writer = await site.connect(GET, limit=1 << 10)
            await loop.put_forward(4)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            while (await reader.readline()).strip():
                pass
            assert len(await reader.readexactly(size)) == size
            writer.write(GET)
            await loop.put_forward(27)
            assert len(site.state.connections) == 1
            await loop.put_forward(5)
            assert not site.state.connections

    run(test)


# Clients that have finished sending


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize("checks", [0, 3, 2500])
def test_client_that_has_finished_sending_gets_the_response(close: bytes, checks: int) -> None:
    async def test(loop: ShiftedLoop) -> None:
        site = Site()
        async with site.listen():
            reader, writer = await site.connect(POST[:-2] + close + b"\r\n123456789")
            writer.write_eof()
            await asyncio.sleep(0.01)
            for _ in range(checks):
                loop.shift += 0.2
                await asyncio.sleep(0)
            site.ready.set()
            head, _, body = (await read_rest(reader)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert head.count(b"HTTP") == 1
            assert body == b"text"
            assert not site.disconnected.is_set()

    run(test)


def test_pipelined_requests_before_the_end_all_get_a_response() -> None:
    async def test(loop: ShiftedLoop) -> None:
        for last, count in ((b"", 3), (GET[:-5], 4)):  # an incomplete one at the end gets 400
            site = Site()
            site.ready.set()
            async with site.listen():
                reader, writer = await site.connect(GET * 3 + last)
                writer.write_eof()
                reply = await read_rest(reader)
                assert (reply.count(b"HTTP/1.1 200 "), reply.count(b"HTTP/1.1 ")) == (3, count)

    run(test)


@pytest.mark.parametrize("part", [GET[:-2], POST, POST + b"12345678"])
def test_end_within_a_request_is_400(part: bytes) -> None:
    async def test(loop: ShiftedLoop) -> None:
        site = Site()
        async with site.listen():
            reader, writer = await site.connect(part)
            await asyncio.sleep(0.01)
            writer.write_eof()
            head, _, body = (await read_rest(reader)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            assert {b"content-type: application/json", b"connection: close"} <= {*head.split(b"\r\n")}
            assert json.loads(body)["error"]["message"] == "The request is incomplete."

    run(test)


def test_response_that_is_ready_at_the_end_of_an_incomplete_request_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class EarlySite(Site):
        async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.ready.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": self.body})

    async def test(loop: ShiftedLoop) -> None:
        site = EarlySite()

        def make_ready(*arguments: Any) -> bytes:
            site.ready.set()
            return error_body(*arguments)

        monkeypatch.setattr("model.serving.timeouts.error_body", make_ready)
        async with site.listen():
            reader, writer = await site.connect(POST)
            await asyncio.sleep(0.01)
            writer.write_eof()
            reply = await read_rest(reader)
            assert (reply[:13], reply.count(b"HTTP/1.1")) == (b"HTTP/1.1 400 ", 1)

    run(test)
    assert not caplog.records


def test_end_without_a_request_is_not_answered() -> None:
    async def test(loop: ShiftedLoop) -> None:
        site = Site()
        site.ready.set()
        async with site.listen():
            reader, writer = await site.connect()
            writer.write_eof()
            assert await read_rest(reader) == b""
            reader, writer = await site.connect(GET)
            await reader.readuntil(b"text")
            writer.write_eof()
            assert await read_rest(reader) == b""

    run(test)


@pytest.mark.parametrize("is_stream", [False, True])
def test_client_that_has_closed_its_socket_is_noticed_within_a_second(is_stream: bool) -> None:
    async def test(loop: ShiftedLoop) -> None:
        site = Site(is_stream=is_stream)
        async with site.listen():
            reader, writer = await site.connect(GET)
            if is_stream:
                await reader.readuntil(b"\r\n\r\n")
            writer.close()
            for _ in range(4):
                await loop.put_forward(0.2)
            await asyncio.wait_for(site.disconnected.wait(), 0.5)
            assert not site.state.connections
            await loop.put_forward(0.4)  # no check follows

    run(test)


def test_client_that_is_gone_is_noticed_between_two_writes() -> None:
    async def test(loop: ShiftedLoop) -> None:
        site = Site()
        async with site.listen():
            _, writer = await site.connect(GET)
            writer.write_eof()
            for _ in range(5):  # the next write is that of the eighth check
                await loop.put_forward(0.2)
            assert not site.disconnected.is_set()
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()  # sends a reset
            await loop.put_forward(0.2)
            assert site.disconnected.is_set()
            assert not site.state.connections

    run(test)


def test_waiting_event_stream_is_checked_with_comments() -> None:
    async def test(loop: ShiftedLoop) -> None:
        site = Site(b"data: 1\n\n", is_stream=True)
        async with site.listen():
            reader, writer = await site.connect(GET.replace(b"1.1", b"1.0"))
            writer.write_eof()
            for _ in range(12):
                await loop.put_forward(0.2)
            site.ready.set()
            assert (await read_rest(reader)).partition(b"\r\n\r\n")[2] == b":\n\n:\n\n:\n\ndata: 1\n\n"

    run(test)
