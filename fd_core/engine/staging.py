"""Small host values on their way to the device: kept there, and sent again only when they change."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from fd_core.api.dtype import DType, dtype
from fd_core.api.platform import Platform
from fd_core.api.tensor import Shape, Tensor, TensorSpec
from fd_core.engine.buffers import TwinBuffer
from fd_core.engine.transit import Transit

Array = np.ndarray[Any, Any]


def _capacity(n: int) -> int:
    return max(16, 1 << max(0, n - 1).bit_length())


class Staged:
    """Named arrays with device twins that grow when needed; equal contents are not sent again."""

    def __init__(self, transit: Transit) -> None:
        self.transit = transit
        self._twins: dict[str, TwinBuffer] = {}
        self._views: dict[tuple[str, Shape], Tensor] = {}

    def put(self, name: str, values: Array) -> Tensor:
        """`values` on the device, valid until the next `put` of this name."""
        flat = values.reshape(-1)
        twin = self._twin(name, flat)
        if not np.array_equal(twin.host[: flat.size], flat):
            twin.host[: flat.size] = flat
            twin.upload(flat.size)
        return self._view(name, values.shape)

    def _twin(self, name: str, flat: Array) -> TwinBuffer:
        twin = self._twins.get(name)
        if twin is None or twin.host.size < flat.size:
            shape = (_capacity(flat.size),)
            twin = self._twins[name] = TwinBuffer(self.transit, shape, dtype(flat.dtype.name))
            self._views = {key: view for key, view in self._views.items() if key[0] != name}
        return twin

    def _view(self, name: str, shape: Shape) -> Tensor:
        return _kept_view(self._views, self._twins[name].device.tensor, name, shape)


class Scratch:
    """Named device memory for results; contents last until the next `get` of the name."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self._flat: dict[str, Tensor] = {}
        self._views: dict[tuple[str, Shape], Tensor] = {}

    def get(self, name: str, shape: Shape, kind: DType) -> Tensor:
        flat = self._flat.get(name)
        if flat is None or flat.numel < prod(shape):
            spec = TensorSpec((_capacity(prod(shape)),), kind)
            flat = self._flat[name] = self.platform.empty(spec)
            self._views = {key: view for key, view in self._views.items() if key[0] != name}
        return _kept_view(self._views, flat, name, shape)


_MAX_VIEWS = 1024


def _kept_view(views: dict[tuple[str, Shape], Tensor], flat: Tensor, name: str, shape: Shape) -> Tensor:
    view = views.get((name, shape))
    if view is None:
        if len(views) >= _MAX_VIEWS:
            views.clear()
        view = views[name, shape] = flat.slice(0, prod(shape)).view(*shape)
    return view
