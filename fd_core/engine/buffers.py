"""Persistent step buffers: host arrays the engine writes and their device twins that kernels read."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod
from typing import Any

import numpy as np

from fd_core.api.dtype import DType, uint8
from fd_core.api.tensor import Shape, Tensor, TensorSpec, empty_host, from_numpy
from fd_core.engine.transit import Transit
from fd_core.layers.buffers import Buffer

Array = np.ndarray[Any, Any]
Field = tuple[str, Shape, DType]

_MAX_LAYOUTS = 256
_ALIGN = 64


def aligned(nbytes: int) -> int:
    """`nbytes`, rounded up so that what follows is aligned for any kernel."""
    return -(-nbytes // _ALIGN) * _ALIGN


class Twin:
    """Host bytes and as many on the device. Where memory is the host's and calls are done when they
    return, both are the same bytes and nothing is sent."""

    def __init__(self, transit: Transit, nbytes: int) -> None:
        spec = TensorSpec((nbytes,), uint8)
        self.host: Array = empty_host(spec).numpy()
        self.host[:] = 0
        self.transit = transit
        if transit.queued:
            self.device = transit.platform.empty(spec)
            self.device.copy_from(from_numpy(self.host))
        else:
            self.device = transit.platform.from_host(self.host)
        self.shared = self.device.ptr == self.host.__array_interface__["data"][0]

    def on_host(self, start: int, shape: Shape, kind: DType) -> Array:
        end = start + prod(shape) * kind.itemsize
        return self.host[start:end].view(kind.numpy()).reshape(shape)

    def on_device(self, start: int, shape: Shape, kind: DType) -> Tensor:
        return Tensor(self.device.ptr + start, shape, kind, self.device.storage)


class Layout:
    """Where the arrays of a step lie in a `Pack`, seen from both sides. `starts`: bytes."""

    __slots__ = ("_sent", "device", "host", "nbytes", "starts", "twin")

    def __init__(self, twin: Twin, first: int, fields: Sequence[Field]) -> None:
        self.twin = twin
        self.host: dict[str, Array] = {}
        self.device: dict[str, Tensor] = {}
        self.starts: dict[str, int] = {}
        at = first
        for name, shape, kind in fields:
            self.starts[name] = at
            self.host[name] = twin.on_host(at, shape, kind)
            self.device[name] = twin.on_device(at, shape, kind)
            at += aligned(prod(shape) * kind.itemsize)
        self.nbytes = at - first
        self._sent: dict[tuple[int, int], Tensor] = {}

    def send(self, first: int, end: int) -> None:
        """Make bytes [first, end) visible to the device, by one copy."""
        if not self.twin.shared:
            part = self._sent.get((first, end))
            if part is None:
                part = self._sent[first, end] = self.twin.on_device(first, (end - first,), uint8)
            self.twin.transit.send(part, self.twin.host[first:end])


class Pack:
    """Several arrays in one buffer, sent by one copy. `front`: bytes at its beginning that are the
    device's own and are never sent.

    Layouts and so views are kept by key: a kernel call with one costs no conversion.
    """

    def __init__(self, transit: Transit, nbytes: int, front: int = 0) -> None:
        self.first = aligned(front)
        self.twin = Twin(transit, self.first + nbytes)
        self._layouts: dict[Hashable, Layout] = {}

    def layout(self, key: Hashable) -> Layout | None:
        return self._layouts.get(key)

    def define(self, key: Hashable, fields: Sequence[Field]) -> Layout:
        """The arrays in order, each aligned."""
        if len(self._layouts) >= _MAX_LAYOUTS:
            del self._layouts[next(iter(self._layouts))]
        made = self._layouts[key] = Layout(self.twin, self.first, fields)
        return made

    def send(self, layout: Layout, before: str = "") -> None:
        """Send what `layout` covers, or only what lies before the array `before`."""
        end = layout.starts[before] if before else self.first + layout.nbytes
        layout.send(self.first, end)

    def send_row(self, layout: Layout, name: str, row: int) -> None:
        """Send one row of one array."""
        nbytes = layout.host[name][row].nbytes
        start = layout.starts[name] + row * nbytes
        layout.send(start, start + nbytes)


class TwinBuffer:
    """`host` [n, ...] and its device twin, at addresses that never change."""

    def __init__(self, transit: Transit, shape: tuple[int, ...], dtype: DType, fill: int = 0) -> None:
        self._twin = Twin(transit, prod(shape) * dtype.itemsize)
        self.host = self._twin.on_host(0, shape, dtype)
        self.host[...] = fill
        self.device = Buffer(self._twin.on_device(0, shape, dtype))

    def upload(self, rows: int) -> Tensor:
        """Make the first `rows` rows of the host array visible to the device."""
        view = self.device.rows(rows)
        if not self._twin.shared:
            self._twin.transit.send(view, self.host[:rows])
        return view
