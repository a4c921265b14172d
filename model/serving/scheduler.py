"""The desk: one thread owns the network and goes on with the texts of all clients, side by side.

Clients are on the event loop of the server. There they hand in an `Order`, read what comes of it, and leave; a text
joins the others as soon as a row is free, and goes at the next step when it has ended or its client has left. Nothing
here can grow without bound: there are so many places, and a text has so many tokens at most.
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

from model.generation.engine import Continuation, Engine
from model.generation.sampling import Token
from model.runs.run import Report
from pipeline.errors import InkstoneError

_GRACE = 3.0  # seconds that texts have to end by themselves when the desk closes
_READING = 60.0  # seconds in which what is left must be read when the last text of an order has ended
_CLOSING = "the server is being ended"


class Full(Exception):
    """There are not so many places left."""


class Unfinished(Exception):
    """No more will come of an order, and why."""


class Closing(Unfinished):
    """The server is being ended."""


@dataclass(frozen=True)
class News:
    """A token more of a text of an order, and how that text ended if it did."""

    number: int
    token: Token
    ended: str


class Order:
    """The texts that a client waits for."""

    def __init__(self, texts: Sequence[Continuation]) -> None:
        self.texts = tuple(texts)
        self._news: deque[News] = deque()
        self._open, self._until = len(self.texts), math.inf  # texts that have not ended; when all must have been read
        self._failure: Unfinished | None = None
        self._told = asyncio.Event()

    async def news(self) -> AsyncIterator[News]:
        """What comes of the texts, as it comes, until all have ended. Raises Unfinished."""
        left = len(self.texts)
        while left:
            while not self._news:
                if self._failure:
                    raise self._failure
                self._told.clear()
                await self._told.wait()
            if time.monotonic() > self._until:
                raise Unfinished("it was not read in time")
            news = self._news.popleft()
            left -= bool(news.ended)
            yield news

    def tell(self, news: News | Unfinished) -> None:
        if isinstance(news, News):
            self._news.append(news)
            self._open -= bool(news.ended)
            if not self._open:
                self._until = time.monotonic() + _READING
        else:
            self._failure = self._failure or news
        self._told.set()


@dataclass(frozen=True)
class Counts:
    """What the desk is busy with, and what it has done: texts and tokens."""

    active: int
    waiting: int
    texts: int
    tokens: int


class Desk:
    """`places` are for the texts that are gone on with, `rows` at a time, and for those that wait or are still being
    read. `order`, `leave` and `close` are for the thread of the event loop that `open` was given."""

    def __init__(self, engine: Engine, rows: int, queue: int, report: Report) -> None:
        self.rows, self.places = rows, rows + queue
        self._engine, self._report = engine, report
        self._changed = threading.Condition()  # guards all that follows
        self._orders: set[Order] = set()
        self._waiting: deque[tuple[Order, int]] = deque()
        self._owners: dict[Continuation, tuple[Order, int]] = {}  # of the active ones
        self._texts, self._tokens = 0, 0
        self._end: float | None = None  # by the monotonic clock
        self._work: Future[None] | None = None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work, and tell orders of it on `loop`."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="desk")
        self._work = pool.submit(self._run, loop)
        pool.shutdown(wait=False)  # when that is done

    @property
    def ended(self) -> bool:
        """Whether nothing is worked on any more."""
        return self._work is not None and self._work.done()

    def result(self) -> None:
        """Wait for the end. Raises what ended the work, if it was not `close`."""
        if self._work:
            self._work.result()

    def counts(self) -> Counts:
        with self._changed:
            return Counts(len(self._owners), len(self._waiting), self._texts, self._tokens)

    def order(self, texts: Sequence[Continuation]) -> Order:
        """Let texts be gone on with. Raises Full or Closing."""
        with self._changed:
            if self._end is not None or self.ended:
                raise Closing(_CLOSING)
            if sum(len(each.texts) for each in self._orders) + len(texts) > self.places:
                raise Full("all places are taken")
            made = Order(texts)
            self._orders.add(made)
            self._waiting.extend((made, number) for number in range(len(texts)))
            self._changed.notify()
        return made

    def leave(self, order: Order) -> None:
        """Give its places back: all has been read, or nobody will read it."""
        with self._changed:
            self._orders.discard(order)
            self._waiting = deque(each for each in self._waiting if each[0] is not order)
            self._changed.notify()

    def close(self) -> None:
        """Take no more orders, let go of those that wait, and end when those that are active have ended, or soon."""
        with self._changed:
            self._end = time.monotonic() + _GRACE if self._end is None else self._end
            self._changed.notify()

    # The thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._arrange(loop):
                try:
                    made = self._engine.step()
                except (InkstoneError, RuntimeError) as error:  # of these texts: others may do
                    what = " ".join(f"{error}".split())[:300]
                    self._report(f"warning: {len(self._owners)} texts are given up: {what}")
                    self._give_up(loop, Unfinished(what))
                    continue
                loop.call_soon_threadsafe(_tell, self._noted(made))
        finally:
            self._give_up(loop, Closing(_CLOSING), everything=True)

    def _arrange(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Let texts go whose clients have left, and others join; wait while there are none. False at the end."""
        with self._changed:
            while True:
                for text, (order, _) in list(self._owners.items()):
                    if order not in self._orders:
                        self._engine.remove(text)
                        del self._owners[text]
                if self._end is not None:
                    for order, _ in self._waiting:
                        loop.call_soon_threadsafe(order.tell, Closing(_CLOSING))
                    self._waiting.clear()
                    return bool(self._owners) and time.monotonic() < self._end
                while self._waiting and not self._engine.full:
                    order, number = self._waiting.popleft()
                    self._engine.add(order.texts[number])
                    self._owners[order.texts[number]] = order, number
                if self._owners:
                    return True
                self._changed.wait()

    def _noted(self, made: Sequence[tuple[Continuation, Token]]) -> list[tuple[Order, News]]:
        with self._changed:
            told = []
            for text, token in made:
                order, number = self._owners[text]
                told.append((order, News(number, token, text.ended)))
                if text.ended:
                    del self._owners[text]
                    self._texts += 1
            self._tokens += len(made)
            return told

    def _give_up(self, loop: asyncio.AbstractEventLoop, why: Unfinished, *, everything: bool = False) -> None:
        """Let all active texts go, or all that there are."""
        with self._changed:
            orders = self._orders if everything else {order for order, _ in self._owners.values()}
            for text in list(self._engine.active):
                self._engine.remove(text)
            self._owners.clear()
            for order in orders:
                loop.call_soon_threadsafe(order.tell, why)


def _tell(told: Sequence[tuple[Order, News]]) -> None:
    for order, news in told:
        order.tell(news)
