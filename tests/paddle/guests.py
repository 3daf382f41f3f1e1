"""The array libraries that a user may bring, each by what makes it different from the others."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fd_core.api.tensor import from_numpy
from fd_core.host.session import Session
from fd_core.ops.guest import exporter, to_tensor


@dataclass(frozen=True)
class Guest:
    """`example()`: one of its tensors. `mutable`: whether ops may write into them. `views`: whether slices
    share memory. `wide`: whether it has 64-bit types by default."""

    name: str
    module: str
    example: Callable[[Any], Any]
    mutable: bool = True
    views: bool = True
    wide: bool = True

    def load(self) -> Any:
        library = pytest.importorskip(self.module, reason=f"{self.module} is not installed")
        if self.module == "paddle":
            library.disable_signal_handler()
        return library

    def tensor(self, array: np.ndarray[Any, Any]) -> Any:
        """A tensor of the library over a copy of `array`."""
        if self.name == "numpy":
            return array.copy()
        example = self.example(importlib.import_module(self.module))
        return exporter(example)(from_numpy(array.copy()))


def on_host(session: Session, value: Any) -> np.ndarray[Any, Any]:
    """A guest's tensor as an array, whatever its element type."""
    return to_tensor(value, session.platform, session.device.device, False).numpy()


GUESTS = (
    Guest("numpy", "numpy", lambda np: np.zeros(1)),
    Guest("paddle", "paddle", lambda paddle: paddle.zeros([1])),
    Guest("torch", "torch", lambda torch: torch.zeros(1)),
    Guest("jax", "jax", lambda jax: jax.numpy.zeros(1), mutable=False, views=False, wide=False),
)
