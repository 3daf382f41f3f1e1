"""Values on their way between host and device, so that neither waits for the other.

An asynchronous device reads the source of a queued copy, and writes its destination, when it comes to
it. So what a step sends is kept in that step's own pinned memory and what it fetches arrives there; the
memory is used again `DEPTH` steps later, behind an event. Elsewhere a copy is done when it returns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fd_core.api.device import DeviceInfo
from fd_core.api.dtype import uint8
from fd_core.api.platform import Event, Platform, Transfers
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy

Array = np.ndarray[Any, Any]

#: Steps under way at a time: one runs while the next one is prepared.
DEPTH = 2

_ALIGN = 64
_FIRST_CHUNK = 1 << 16
_MAX_VIEWS = 1024


class Transit:
    """The copies of one runner, in the order of its steps."""

    def __init__(self, platform: Platform, device: DeviceInfo) -> None:
        self.platform = platform
        self.queued = "asynchronous" in device.features
        self._transfers = platform.transfers()
        self._turns = [_Turn(self._transfers) for _ in range(DEPTH)]
        self._now = 0

    def next_step(self) -> None:
        """The memory of the step `DEPTH` steps ago is used again from here on."""
        self._turns[self._now].leave()
        self._now = (self._now + 1) % DEPTH
        self._turns[self._now].begin()

    def send(self, dst: Tensor, values: Array) -> None:
        """Copy contiguous `values` to `dst` (same shape and dtype); the caller may change them at once."""
        if not values.size:
            return
        if self.queued:
            self._transfers.copy(dst, self._turns[self._now].stage(values, dst))
        else:
            dst.copy_from(from_numpy(values))

    def fetch(self, name: str, src: Tensor) -> Array:
        """An array that holds `src` as it is now once the next `mark` has passed, until `DEPTH` steps
        later or the next `fetch` of this name in the same step."""
        if not self.queued:
            return np.array(self.platform.to_host(src))
        pinned, array = self._turns[self._now].landing(name, src.spec)
        if array.size:
            self._transfers.copy(pinned, src)
        return array

    def mark(self) -> Event:
        """An event behind everything this step has queued so far."""
        return self._turns[self._now].mark()


class _Turn:
    """Pinned memory of every `DEPTH`th step."""

    def __init__(self, transfers: Transfers) -> None:
        self._event = transfers.event()
        self._marked = False
        self._transfers = transfers
        self._chunk = transfers.pinned(TensorSpec((0,), uint8))
        self._bytes = self._chunk.numpy()
        self._used = 0
        self._outgrown: list[Tensor] = []
        self._landings: dict[str, Tensor] = {}
        self._views: dict[tuple[str, TensorSpec], tuple[Tensor, Array]] = {}

    def mark(self) -> Event:
        self._event.record()
        self._marked = True
        return self._event

    def leave(self) -> None:
        """A step that broke off has no mark, and may have queued copies."""
        if not self._marked:
            self.mark()

    def begin(self) -> None:
        self._event.wait()
        self._marked = False
        self._used = 0
        self._outgrown.clear()

    def stage(self, values: Array, like: Tensor) -> Tensor:
        """A pinned copy of `values` with the shape and dtype of `like`."""
        start, end = self._used, self._used + values.nbytes
        if end > self._bytes.size:
            start, end = 0, values.nbytes
            self._grow(end)
        self._bytes[start:end] = values.reshape(-1).view(np.uint8)
        self._used = -(-end // _ALIGN) * _ALIGN
        return Tensor(self._chunk.ptr + start, like.shape, like.dtype, self._chunk.storage)

    def _grow(self, least: int) -> None:
        self._outgrown.append(self._chunk)  # queued copies still read it
        size = max(_FIRST_CHUNK, 2 * self._bytes.size, 1 << (least - 1).bit_length())
        self._chunk = self._transfers.pinned(TensorSpec((size,), uint8))
        self._bytes = self._chunk.numpy()

    def landing(self, name: str, spec: TensorSpec) -> tuple[Tensor, Array]:
        """Pinned memory for what arrives under `name`, as a tensor and as an array."""
        view = self._views.get((name, spec))
        if view is None:
            if len(self._views) >= _MAX_VIEWS:
                self._views.clear()
            view = self._views[name, spec] = self._land(name, spec)
        return view

    def _land(self, name: str, spec: TensorSpec) -> tuple[Tensor, Array]:
        memory = self._landings.get(name)
        if memory is None or memory.nbytes < spec.nbytes:
            size = max(_ALIGN, 1 << max(0, spec.nbytes - 1).bit_length())
            memory = self._landings[name] = self._transfers.pinned(TensorSpec((size,), uint8))
            self._views = {key: view for key, view in self._views.items() if key[0] != name}
        tensor = Tensor(memory.ptr, spec.shape, spec.dtype, memory.storage)
        return tensor, tensor.numpy()
