"""The engines that `--engine` can name: "local" means no engine, "ray" is Ray (`ray_engine.py`)."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from pipeline.errors import BadConfig, missing_package
from pipeline.runtime.spread import Engine

LOCAL = "local"
_RAY = re.compile(r"ray(:[^\s:/]+:\d{1,5})?")

OpenEngine = Callable[[], AbstractContextManager[Engine]]


def engine_named(name: str, cores: int) -> OpenEngine | None:
    """Return the function that opens the engine `name`: "ray" or "ray:HOST:PORT"; None for "local".

    Raises BadConfig for another name, or if the package of the engine is not installed.
    """
    if name == LOCAL:
        return None
    if not _RAY.fullmatch(name):
        raise BadConfig(f"unknown engine {name!r}", hint="engines: local, ray, ray:HOST:PORT")
    if importlib.util.find_spec("ray") is None:
        raise missing_package("ray")
    from pipeline.runtime import ray_engine

    return lambda: ray_engine.open_ray(name.partition(":")[2], cores)
