"""The engine of a Ray cluster: each call is a Ray task with as many processors as it has processes.

This is the only module that imports Ray (extra `scale`). Ray retries nothing: `spread.py` does, because it knows
which units are finished. Every node needs the same versions of Ray, Python and Inkstone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import ray

from pipeline.errors import BadConfig, TryAgain
from pipeline.runtime.spread import Engine

_CONNECT_SECONDS = 5.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def open_ray(address: str, cores: int) -> Iterator[Engine]:
    """Connect to the cluster at `address`, HOST:PORT, by default the one that this machine belongs to.

    At the end of the block Ray ends all tasks that still run. Raises TryAgain if there is no cluster.
    """
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # attempts; Ray's own 20 take minutes
    try:
        if address:  # refused at once, where Ray would wait
            host, _, port = address.partition(":")
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TryAgain(
            f"no Ray cluster at {address or 'this machine'}: {reason}",
            hint="start it with `ray start --head`, and run this command on one of its nodes",
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has set its own
    # Ray prints its messages about lost workers to stdout, which belongs to the result of the command.
    with open(os.devnull, "w") as discarded, contextlib.redirect_stdout(discarded):
        try:
            yield RayEngine(cores)
        finally:
            ray.shutdown()


class RayEngine:
    """Runs each call as a Ray task on a node that has `cores` free processors."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        options = {"num_cpus": cores, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        self._remote = ray.remote(**options)(_call)

    @property
    def slots(self) -> int:
        """The calls that the present nodes of the cluster can run at once."""
        return int(ray.cluster_resources().get("CPU", 0)) // self.cores

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._remote.remote(call, *arguments).future().add_done_callback(functools.partial(_settle, future))
        return future


def _call(call: Callable[..., Any], *arguments: Any) -> Any:
    return call(*arguments)


def _settle(future: Future[Any], outcome: Future[Any]) -> None:
    """Copy the outcome of a Ray task to `outcome`. If the node could not start the call, it is a BadConfig."""
    if not future.set_running_or_notify_cancel():
        return
    error = outcome.exception()
    if isinstance(error, ray.exceptions.RayTaskError):
        reason = " ".join(_COLOUR.sub("", str(error)).split())
        error = BadConfig(
            f"a node cannot run this task: {reason[-300:]}",
            hint="install the same Inkstone on every node, and start the command in a folder without another one",
        )
    if error:
        future.set_exception(error)
    else:
        future.set_result(outcome.result())
