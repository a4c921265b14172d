"""Scheduler: one thread owns the model and generates the sequences of all requests in one batch.

Request handlers run on the event loop of the server: they submit a `GenerationRequest`, read its token events and
release it. A sequence joins the batch as soon as a row is free. It leaves after the step at which it ends or its
request is released. Memory is bounded: `capacity` limits the sequences, and each sequence has a limit of tokens.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from model.generation.engine import Engine, TokenSequence
from model.generation.sampling import SampledToken
from model.runs.run import Report
from pipeline.errors import InkstoneError
from pipeline.runtime.terminal import counted

_GRACE_SECONDS = 3.0  # for active sequences to end after a shutdown
_READ_SECONDS = 60.0  # for a client to read the remaining events after its last sequence has ended
_SHUTTING_DOWN = "the server is shutting down"


class QueueFull(Exception):
    """The submitted sequences exceed the free capacity."""


class GenerationFailed(Exception):
    """A request ended early; no more events follow. The message is the reason."""


class ShuttingDown(GenerationFailed):
    """The server is shutting down."""


@dataclass(frozen=True)
class TokenEvent:
    """One generated token of sequence `index` of a request. `finish_reason` is "" unless the sequence has ended."""

    index: int
    token: SampledToken
    finish_reason: str


class GenerationRequest:
    """The sequences of one client request, and the queue of their token events."""

    def __init__(self, sequences: Sequence[TokenSequence]) -> None:
        self.sequences = tuple(sequences)
        self._events: deque[TokenEvent] = deque()
        self._unfinished = len(self.sequences)
        self._read_deadline = math.inf  # by the monotonic clock
        self._failure: GenerationFailed | None = None
        self._changed = asyncio.Event()

    async def events(self) -> AsyncIterator[TokenEvent]:
        """Yield token events until all sequences have ended. Raises GenerationFailed."""
        remaining = len(self.sequences)
        while remaining:
            while not self._events:
                if self._failure:
                    raise self._failure
                self._changed.clear()
                await self._changed.wait()
            if time.monotonic() > self._read_deadline:
                raise GenerationFailed("the client did not read the response in time")
            event = self._events.popleft()
            remaining -= bool(event.finish_reason)
            yield event

    def push(self, event: TokenEvent | GenerationFailed) -> None:
        """Queue an event, or fail the request. Call on the event loop."""
        if isinstance(event, TokenEvent):
            self._events.append(event)
            self._unfinished -= bool(event.finish_reason)
            if not self._unfinished:
                self._read_deadline = time.monotonic() + _READ_SECONDS
        else:
            self._failure = self._failure or event
        self._changed.set()


@dataclass(frozen=True)
class SchedulerStats:
    """Sequences that are active and waiting; sequences and tokens that were generated so far."""

    active: int
    waiting: int
    sequences: int
    tokens: int


class Scheduler:
    """Continuous batching of `rows` sequences at a time, with a queue of `queue` more.

    `capacity` counts the sequences of all requests that are not released: active, waiting, or ended but not yet read.
    Call `submit`, `release` and `shutdown` on the event loop that was passed to `start`.
    """

    def __init__(self, engine: Engine, rows: int, queue: int, report: Report) -> None:
        self.rows, self.capacity = rows, rows + queue
        self._engine, self._report = engine, report
        self._changed = threading.Condition()  # guards all attributes below
        self._requests: set[GenerationRequest] = set()
        self._waiting: deque[tuple[GenerationRequest, int]] = deque()
        self._owners: dict[TokenSequence, tuple[GenerationRequest, int]] = {}  # of the active sequences
        self._sequences, self._tokens = 0, 0
        self._stop_at: float | None = None  # by the monotonic clock
        self._thread: Future[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the generation thread; it pushes events on `loop`."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="scheduler")
        self._thread = pool.submit(self._run, loop)
        pool.shutdown(wait=False)  # the thread ends after its only job

    @property
    def stopped(self) -> bool:
        """True once the generation thread has ended."""
        return self._thread is not None and self._thread.done()

    def result(self) -> None:
        """Wait for the generation thread. Raises the error that ended it, if `shutdown` did not."""
        if self._thread:
            self._thread.result()

    def stats(self) -> SchedulerStats:
        with self._changed:
            return SchedulerStats(len(self._owners), len(self._waiting), self._sequences, self._tokens)

    def submit(self, sequences: Sequence[TokenSequence]) -> GenerationRequest:
        """Queue sequences for generation. Raises QueueFull or ShuttingDown."""
        with self._changed:
            if self._stop_at is not None or self.stopped:
                raise ShuttingDown(_SHUTTING_DOWN)
            if sum(len(request.sequences) for request in self._requests) + len(sequences) > self.capacity:
                raise QueueFull("the queue is full")
            request = GenerationRequest(sequences)
            self._requests.add(request)
            self._waiting.extend((request, index) for index in range(len(sequences)))
            self._changed.notify()
        return request

    def release(self, request: GenerationRequest) -> None:
        """Free the capacity of a request: its response is complete, or its client has disconnected."""
        with self._changed:
            self._requests.discard(request)
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not request)
            self._changed.notify()

    def shutdown(self) -> None:
        """Reject new requests, fail the waiting ones, and stop when the active ones or the grace period end."""
        with self._changed:
            self._stop_at = time.monotonic() + _GRACE_SECONDS if self._stop_at is None else self._stop_at
            self._changed.notify()

    # The generation thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._schedule(loop):
                try:
                    tokens = self._engine.step()
                except (InkstoneError, RuntimeError) as error:  # out of memory, for instance: fail this batch only
                    reason = " ".join(f"{error}".split())[:300]
                    self._report(f"warning: {counted(len(self._owners), 'sequences')} failed: {reason}")
                    self._fail(loop, GenerationFailed(reason))
                    continue
                loop.call_soon_threadsafe(_push_all, self._events_of(tokens))
        finally:
            self._fail(loop, ShuttingDown(_SHUTTING_DOWN), waiting_too=True)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Remove released sequences, add waiting ones, and block while there are none. Return False to stop."""
        with self._changed:
            while True:
                for sequence, (request, _) in list(self._owners.items()):
                    if request not in self._requests:
                        self._engine.remove(sequence)
                        del self._owners[sequence]
                if self._stop_at is not None:
                    for request, _ in self._waiting:
                        loop.call_soon_threadsafe(request.push, ShuttingDown(_SHUTTING_DOWN))
                    self._waiting.clear()
                    return bool(self._owners) and time.monotonic() < self._stop_at
                while self._waiting and not self._engine.is_full:
                    request, index = self._waiting.popleft()
                    self._engine.add(request.sequences[index])
                    self._owners[request.sequences[index]] = request, index
                if self._owners:
                    return True
                self._changed.wait()

    def _events_of(
        self, tokens: Sequence[tuple[TokenSequence, SampledToken]]
    ) -> list[tuple[GenerationRequest, TokenEvent]]:
        with self._changed:
            events = []
            for sequence, token in tokens:
                request, index = self._owners[sequence]
                events.append((request, TokenEvent(index, token, sequence.finish_reason)))
                if sequence.finish_reason:
                    del self._owners[sequence]
                    self._sequences += 1
            self._tokens += len(tokens)
            return events

    def _fail(self, loop: asyncio.AbstractEventLoop, failure: GenerationFailed, *, waiting_too: bool = False) -> None:
        """Remove all active sequences and fail their requests; with `waiting_too`, fail every request."""
        with self._changed:
            requests = self._requests if waiting_too else {request for request, _ in self._owners.values()}
            self._engine.clear()
            self._owners.clear()
            for request in requests:
                loop.call_soon_threadsafe(request.push, failure)


def _push_all(events: Sequence[tuple[GenerationRequest, TokenEvent]]) -> None:
    for request, event in events:
        request.push(event)
