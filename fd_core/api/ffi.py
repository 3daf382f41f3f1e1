"""The one place that imports TVM-FFI."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

_NEEDED = frozenset(sys.stdlib_module_names) | {"tvm_ffi", "numpy", "ml_dtypes", "typing_extensions"}


class _Hide(MetaPathFinder):
    """Lets only what TVM-FFI needs be found, by the thread that imports it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if name.partition(".")[0] not in _NEEDED and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is hidden while TVM-FFI is imported", name=name)


@contextmanager
def _hidden_guests() -> Iterator[None]:
    hide = _Hide()
    sys.meta_path.insert(0, hide)
    try:
        yield
    finally:
        sys.meta_path.remove(hide)


def tvm_ffi() -> ModuleType:
    """TVM-FFI, without the array framework it would import wherever one is installed.

    That import takes a second and hundreds of megabytes, and guests' tensors do not need it: they pass
    through DLPack. A framework that is loaded already stays visible to it.
    """
    if "tvm_ffi" not in sys.modules:
        with _hidden_guests():
            importlib.import_module("tvm_ffi")
    return sys.modules["tvm_ffi"]
