"""Pickles of plain values, read without running code from them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from pipeline.errors import BadData
from pipeline.runtime.regular_file import regular_file

_MAX_BYTES = 64 << 20  # a vocabulary of 65,536 tokens takes 2 MB


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def load_plain_pickle(path: Path) -> object:
    """Return the dicts, lists, texts and numbers of a pickle.

    Raises BadData if it is damaged, larger than 64 MiB, or names a class or a function, which could run code; and
    OSError.
    """
    with regular_file(path).open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise BadData(f"{path}: more than {_MAX_BYTES >> 20} MiB, expected a vocabulary", hint="do not use it")
    try:
        content: object = _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # noqa: BLE001 - damaged bytes raise any of them
        reason = " ".join(str(error).split())[:100]
        raise BadData(f"{path}: not a pickle of plain values: {reason}", hint="do not use it") from None
    return content
