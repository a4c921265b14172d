"""Pickles of plain values, read without running code from them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import BadData
from pipeline.runtime.regular_file import regular_file

_MAX_BYTES = 64 << 20  # a vocabulary of 65,536 tokens takes 2 MB


# The opcodes of dicts, lists, texts, numbers, booleans and None in all protocols, and those of names, which find_class
# refuses. Those of tuples are missing: a deeply nested tuple as the key of a dict can crash the process.
_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.MEMOIZE, pickle.PUT, pickle.BINPUT),
    *(pickle.LONG_BINPUT, pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.GLOBAL, pickle.STACK_GLOBAL),
    *(pickle.DICT, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.LIST, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1),
    *(pickle.FLOAT, pickle.BINFLOAT),
)


class _Unpickler(pickle._Unpickler):  # not the one in C: there, a few bytes can allocate a table of GiB
    dispatch: ClassVar = {opcode[0]: pickle._Unpickler.dispatch[opcode[0]] for opcode in _OPCODES}

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
    except KeyError as error:
        raise BadData(f"{path}: not a pickle of plain values: opcode or memo {error}", hint="do not use it") from None
    except Exception as error:  # noqa: BLE001 - damaged bytes raise any of them
        reason = " ".join(str(error).split())[:100]
        raise BadData(f"{path}: not a pickle of plain values: {reason}", hint="do not use it") from None
    return content
