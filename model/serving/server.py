"""Server of one run: listening socket, warnings, and an orderly shutdown."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.generation.session import Session
from model.runs.run import Report
from pipeline.errors import BadConfig, NotPermitted, TryAgain, install_command

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from model.serving.model_info import PageContent

_FLUSH_SECONDS = 5  # for clients to read buffered data after the last sequence has ended


@dataclass(frozen=True)
class ServerConfig:
    """Address to listen on, sequences to generate at a time, sequences that may wait, more host names, file of keys."""

    host: str = "127.0.0.1"
    port: int = 8000
    rows: int = 8
    queue: int = 64
    server_names: tuple[str, ...] = ()
    api_key_file: Path | None = None


@dataclass(frozen=True)
class ServerSummary:
    """Summary of a stopped server: its URL, and how many sequences and tokens it generated."""

    url: str
    texts: int
    tokens: int


def require_packages() -> None:
    """Raise BadConfig if the optional packages are not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise BadConfig("starlette and uvicorn are not installed", hint=install_command("serve")) from None


def serve(
    session: Session, config: ServerConfig, content: PageContent, report: Report, stopped: threading.Event
) -> ServerSummary:
    """Serve a run until a signal arrives or `stopped` is set; `content` is for its page.

    Raises TryAgain if the port is in use.
    """
    import uvicorn

    from model.generation.engine import Engine
    from model.serving.access import make_access
    from model.serving.app import create_app
    from model.serving.model_info import load_model_info
    from model.serving.scheduler import Scheduler
    from pipeline.runtime.signals import stop_on_signals

    class Server(uvicorn.Server):
        """uvicorn's server without its signal handlers; it stops once the scheduler has."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def on_tick(self, counter: int) -> bool:
            if stopped.is_set():
                scheduler.shutdown()
            return scheduler.stopped or await super().on_tick(counter)

    with closing(listen(config.host, config.port)) as listener:
        host, port = listener.getsockname()[:2]
        local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
        access = make_access(local, config.server_names, config.api_key_file)
        url, others_url = addresses(host, port)
        model = load_model_info(session, content, public=not access.keys)
        scheduler = Scheduler(Engine(session.model, config.rows), config.rows, config.queue, report)
        if warning := access.warning(config.host):
            report(warning)

        def on_start() -> None:
            report(f"serving {model.ref} at {url} (press Ctrl-C to stop)")
            if others_url:
                report(f"from other machines: {others_url}")

        app = create_app(model, scheduler, access=access, report=report, on_start=on_start)
        with stop_on_signals(stopped):
            Server(_settings(app)).run([listener])
    scheduler.result()
    stats = scheduler.stats()
    return ServerSummary(url, stats.sequences, stats.tokens)


def _settings(app: ASGIApp) -> uvicorn.Config:
    import uvicorn

    from model.serving.timeouts import TimeoutProtocol

    return uvicorn.Config(
        app,
        loop="asyncio",
        http=TimeoutProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_FLUSH_SECONDS,
    )


def addresses(host: str, port: int) -> tuple[str, str]:
    """Return the URL of a listening address, and one for other machines, "" unless all addresses are listened on."""

    def url(name: str) -> str:
        return f"http://{f'[{name}]' if ':' in name else name}:{port}"

    if not ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        return url(host), ""
    is_ipv6 = ":" in host
    with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("2001:db8::1" if is_ipv6 else "192.0.2.1", 9))  # chooses a route; sends nothing
            name = str(probe.getsockname()[0])
        except OSError:  # no route, as in a network without a gateway
            name = socket.gethostname()
    return url("::1" if is_ipv6 else "127.0.0.1"), url(name)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises TryAgain (port in use), NotPermitted or BadConfig."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadConfig(f"--host {host}: {reason}", hint="use an address of this machine, such as 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            hint = "choose another --port; 0 picks a free one"
            raise TryAgain(f"port {port} of {host} is in use", hint=hint) from None
        if error.errno == errno.EACCES:
            raise NotPermitted(f"port {port} of {host} needs root", hint="choose a --port above 1023") from None
        hint = "use an address of this machine, such as 127.0.0.1"
        raise BadConfig(f"--host {host}: {error.strerror}", hint=hint) from None
    return listener
