"""Write a `.safetensors` file tensor by tensor: the header first, from specifications alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fd_core.api.tensor import TensorSpec
from fd_core.loader.tensor_file import DTYPES

#: Where the tensors begin, and sizes that are multiples of it first: kernels read them in place.
ALIGNMENT = 64


class TensorWriter:
    """Tensors come in any order; the file gets its name with `close`, when all are there.

    Raises ValueError for a tensor that was not announced, is not of its specification or is missing.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        self._path, self._part = path, path.with_name(path.name + ".part")
        self._specs = dict(specs)
        self._missing = set(specs)
        self._parts: dict[str, set[int]] = {}  # of tensors that come in parts, those still missing
        header, self._starts = _header(specs)
        self._file = self._part.open("wb")
        self._file.write(header)

    def write(self, name: str, value: np.ndarray[Any, Any]) -> None:
        """A whole tensor."""
        spec = self._specs.get(name)
        known = spec is not None and spec.dtype.name == value.dtype.name and name in self._missing
        if spec is None or not known or spec.shape != value.shape or name in self._parts:
            want = None if spec is None else (spec.shape, spec.dtype.name)
            self._refuse(name, want, (value.shape, value.dtype.name))
        self._put(name, 0, value)
        self._missing.remove(name)

    def write_part(self, name: str, index: int, value: np.ndarray[Any, Any]) -> None:
        """Element `index` of the first dimension of a tensor, all of which come in this way."""
        spec = self._specs.get(name)
        missing = self._parts.setdefault(name, set(range(spec.shape[0] if spec else 0)))
        part = None if spec is None else (spec.shape[1:], spec.dtype.name)
        if part != (value.shape, value.dtype.name) or name not in self._missing or index not in missing:
            self._refuse(f"{name}[{index}]", part, (value.shape, value.dtype.name))
        self._put(name, index * value.nbytes, value)
        missing.remove(index)
        if not missing:
            self._missing.remove(name)

    def _put(self, name: str, offset: int, value: np.ndarray[Any, Any]) -> None:
        self._file.seek(self._starts[name] + offset)
        np.ascontiguousarray(value).tofile(self._file)

    def _refuse(self, what: str, want: object, have: object) -> NoReturn:
        raise ValueError(f"{self._path.name}: {what}: want {want}, once; have {have}")

    def close(self) -> None:
        if self._missing:
            raise ValueError(
                f"{self._path.name}: want {', '.join(sorted(self._missing))} too, have the rest"
            )
        self._file.close()
        self._part.rename(self._path)

    def abandon(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


def _header(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and the byte at which each tensor starts."""
    names = {dtype.name: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, spec in sorted(specs.items(), key=lambda item: (item[1].nbytes % ALIGNMENT != 0, item[0])):
        places = [at, at + spec.nbytes]
        entries[name] = {"dtype": names[spec.dtype.name], "shape": list(spec.shape), "data_offsets": places}
        at += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    starts = {n: 8 + len(text) + e["data_offsets"][0] for n, e in entries.items() if n != "__metadata__"}
    return len(text).to_bytes(8, "little") + text, starts
