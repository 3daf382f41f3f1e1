"""The same call on the oracle and on the compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fd_core.host.oracle import oracle_target
from fd_core.ops.catalogue import find
from fd_core.testkit.check import Values, run_kernel

PROVIDERS = ("oracle", "fd-cpu")


def target(provider: str, name: str) -> Callable[..., Any]:
    """The callable behind op `name`; skips the test where fd-cpu has no library."""
    if provider == "oracle":
        return oracle_target(find(name))
    library = pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")
    try:
        library.chosen()
    except RuntimeError as error:
        pytest.skip(str(error))
    return getattr(library, name)


def run(provider: str, name: str, **inputs: Any) -> Values:
    """All parameters after the call (inputs are copied, outputs start as garbage)."""
    return run_kernel(find(name), target(provider, name), inputs)


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit."""
    return a.dtype == b.dtype and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
