"""Weight files of other programs: which tensors are accepted from them.

Only dense tensors of floating-point numbers are weights. Integers, booleans, complex numbers and 8-bit floats would
convert to fp32 without an error, but most often they are quantised values that need a scale.
"""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import BadData

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Errors of torch's unpickler for a file that is not a valid pickle of tensors.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or, for any other suffix, of a pickle.

    Raises BadData if the file is damaged, or has a name twice.
    """
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            hint = "download it again, or do not use it"
            raise BadData(f"{path}: not valid safetensors: {error}", hint=hint) from None
        require_unique(_names_in_header(path), path)
        return tensors
    return require_tensors(load_pickle(path), path)


def load_pickle(path: Path) -> object:
    """Return the content of a pickle of tensors, containers and plain values. Raises BadData for any other object."""
    mmap = zipfile.is_zipfile(path)  # files of torch < 1.6 are not zip files and cannot be mapped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that are refused below
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except _UNPICKLING_ERRORS as error:
        reason = " ".join(str(error).split())[:150]
        raise BadData(f"{path}: damaged, or contains more than tensors: {reason}", hint="do not use it") from None
    return content


def require_tensors(tensors: object, path: Path) -> dict[str, Tensor]:
    """Return `tensors`, the content of a pickle. Raises BadData unless it is a dict of tensors."""
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise BadData(f"{path}: not a dict of tensors", hint="do not use it")
    return tensors


def _names_in_header(path: Path) -> Iterable[str]:
    """Yield the names in the header of a valid safetensors file; its own reader keeps the last of equal names."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = file.read(size)
    return (name for name, _ in json.loads(header, object_pairs_hook=list))


def require_unique(names: Iterable[str], path: Path | str) -> None:
    """Raise BadData if a name occurs twice: which of the tensors is meant is unknown."""
    name, count = max(Counter(names).items(), key=lambda entry: entry[1], default=("", 0))
    if count > 1:
        raise BadData(f"{path}: {name} is named twice", hint="download it again, or do not use it")


def require_weights(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise BadData unless all are dense floating-point tensors whose values are in the file."""
    for name, tensor in tensors.items():
        if problem := _problem(tensor):
            raise BadData(
                f"{path}: {name} is {problem}, expected 16, 32 or 64-bit floating point",
                hint="save the network in float32, without quantisation",
            )
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    size, stored = sum(tensor.nbytes for tensor in tensors.values()), sum(storages.values())
    if size > 2 * stored:  # twice: a pickle has a tied embedding under two names
        raise BadData(f"{path}: tensors of {size:,} bytes share {stored:,} bytes of values", hint="do not use it")


def _problem(tensor: Tensor) -> str:
    """Return why a tensor is not accepted as weights, "" if it is."""
    if tensor.is_meta:
        return "without values (on the meta device)"
    if tensor.is_quantized:
        return f"quantised ({_name(tensor.dtype)})"
    if tensor.layout != torch.strided:
        return f"sparse ({_name(tensor.layout)})"
    if tensor.is_nested:
        return "nested"
    if tensor.dtype not in _DTYPES:
        return _name(tensor.dtype)
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
        return "one value repeated"  # a small file can expand to any size
    return ""


def _name(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
