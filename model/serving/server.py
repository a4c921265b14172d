"""`serve`: a run behind a socket of this machine, until it is asked to end."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from model.generation.session import Session
from model.runs.run import Report
from pipeline.errors import BadConfig, NotPermitted, TryAgain

_FLUSH = 5  # seconds for clients to take what is left when all texts have ended


@dataclass(frozen=True)
class Place:
    """Where to serve, how many texts at a time, and how many may wait."""

    host: str = "127.0.0.1"
    port: int = 8000
    rows: int = 8
    queue: int = 64


@dataclass(frozen=True)
class Served:
    """What a server was, and what it did: texts and tokens."""

    url: str
    texts: int
    tokens: int


def serve(session: Session, place: Place, report: Report, stopped: threading.Event) -> Served:
    """Serve a run until a signal comes, or `stopped` is set. Raises BadConfig where what it takes is not installed,
    TryAgain where the port is in use."""
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError:
        raise BadConfig("FastAPI and uvicorn are not installed", hint="pip install 'inkstone[serve]'") from None
    from model.generation.engine import Engine
    from model.serving import app as routes
    from model.serving.app import look
    from model.serving.scheduler import Desk
    from model.serving.timeouts import Connection
    from pipeline.runtime import signals as stop

    class Server(uvicorn.Server):
        """uvicorn's, which leaves signals to `stop`, and ends when the desk has."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def on_tick(self, counter: int) -> bool:
            if stopped.is_set():
                desk.close()
            return desk.ended or await super().on_tick(counter)

    with closing(listen(place.host, place.port)) as listener:
        host, port = listener.getsockname()[:2]
        local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        shown = look(session)
        desk = Desk(Engine(session.model, place.rows), place.rows, place.queue, report)
        if not local:
            report(f"warning: {place.host} can be reached from other machines, and there is no authentication")

        def opened() -> None:
            report(f"serving {shown.ref} at {url} (Ctrl-C ends it)")

        config = uvicorn.Config(
            routes.app(shown, desk, local=local, report=report, opened=opened),
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_FLUSH,
        )
        with stop.asked(stopped):
            Server(config).run([listener])
    desk.result()
    counts = desk.counts()
    return Served(url, counts.texts, counts.tokens)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises TryAgain, NotPermitted or BadConfig where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise BadConfig(f"--host {host}: {what}", hint="an address of this machine, such as 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise TryAgain(
                f"port {port} of {host} is in use", hint="choose another --port; 0 takes a free one"
            ) from None
        if error.errno == errno.EACCES:
            raise NotPermitted(f"port {port} of {host} is not permitted", hint="choose one above 1023") from None
        raise BadConfig(f"{host}: {error.strerror}", hint="an address of this machine, such as 127.0.0.1") from None
    return listener
