"""One `.safetensors` file, memory-mapped: views of its tensors without a copy.

The format's own library cannot do this without another framework: its NumPy reader copies every
tensor and knows neither bfloat16 nor float8. The format is small and frozen: 8 bytes of little-endian
header length, a JSON object {name: {dtype, shape, data_offsets}}, then the bytes. Everything a header
claims is checked against the file before a byte of data is touched.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fd_core.api import dtype as dt
from fd_core.api.dtype import DType
from fd_core.api.tensor import TensorSpec
from fd_core.loader.errors import CheckpointError

#: The format's own limit for a header.
MAX_HEADER_BYTES = 100_000_000

DTYPES: dict[str, DType] = {
    "F64": dt.float64,
    "F32": dt.float32,
    "F16": dt.float16,
    "BF16": dt.bfloat16,
    "F8_E4M3": dt.float8_e4m3fn,
    "I64": dt.int64,
    "I32": dt.int32,
    "I16": dt.int16,
    "I8": dt.int8,
    "U64": dt.uint64,
    "U32": dt.uint32,
    "U16": dt.uint16,
    "U8": dt.uint8,
    "BOOL": dt.bool_,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file: what it is and at which byte of the file it starts."""

    spec: TensorSpec
    start: int


class TensorFile:
    """An open file. Its arrays are read-only and keep the mapping alive after `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = _map(path)
        self.metadata, self.entries = _read_header(path, self._map)

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """The tensor's bytes in the file, as an array."""
        entry = self.entries[name]
        kind = entry.spec.dtype.numpy()
        count = prod(entry.spec.shape)
        if count == 0:
            return np.empty(entry.spec.shape, kind)
        raw = np.frombuffer(self._map, np.uint8, entry.spec.nbytes, entry.start)
        return raw.view(kind).reshape(entry.spec.shape)

    def release(self, name: str) -> None:
        """Take the tensor's whole pages out of this process; arrays over them stay valid."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        entry = self.entries[name]
        first = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (entry.start + entry.spec.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if advice is not None and first < last:
            self._map.madvise(advice, first, last - first)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise CheckpointError(f"{path}: the file is empty; download it again") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _read_header(path: Path, data: mmap.mmap) -> tuple[dict[str, str], dict[str, Entry]]:
    size = len(data)
    length = int.from_bytes(data[:8], "little") if size >= 8 else size
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise _broken(path, f"its header claims {length} bytes, the file has {size}")
    header = _json(path, data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _broken(path, "__metadata__ is not an object")
    base = 8 + length
    entries = {name: _entry(path, name, value, base) for name, value in header.items()}
    _check_cover(path, entries, base, size)
    return {str(k): str(v) for k, v in metadata.items()}, entries


def _json(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise _broken(path, "its header is not an object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(path: Path, name: str, value: Any, base: int) -> Entry:
    try:
        kind, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _broken(path, f"tensor {name!r} has no dtype, shape and data_offsets") from None
    if kind not in DTYPES:
        raise CheckpointError(f"{path}: {name!r}: want a dtype among {', '.join(DTYPES)}, have {kind!r}")
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise _broken(path, f"tensor {name!r} has sizes that are no counts: {shape}, {start}, {end}")
    spec = TensorSpec(shape, DTYPES[kind])
    if end - start != spec.nbytes:
        raise _broken(
            path, f"tensor {name!r} {list(shape)} {kind} needs {spec.nbytes} bytes, has {end - start}"
        )
    return Entry(spec, base + start)


def _check_cover(path: Path, entries: dict[str, Entry], base: int, size: int) -> None:
    """Tensors lie one after another, from the header to the end of the file, as the format demands."""
    at = base
    for entry in sorted(entries.values(), key=lambda e: (e.start, e.spec.nbytes)):
        if entry.start != at:
            raise _broken(path, f"its tensors overlap or leave a hole at byte {at}")
        at += entry.spec.nbytes
    if at != size:
        raise _broken(path, f"its tensors end at byte {at}, the file at byte {size}")


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: truncated or corrupt: {why}; download or export it again")
