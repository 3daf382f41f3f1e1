"""Current streams of libraries whose tensors do not tell them. Imported when such a tensor is met."""

from __future__ import annotations

import sys
from typing import Any

from fd_core.api.device import Device
from fd_core.ops.stream import register_stream_source

#: DLPack device types that a CuPy array can be on.
_CUPY_DEVICES = (2, 10, 13)


def cupy_stream(device: Device) -> int | None:
    """The thread's current stream; CuPy keeps one per device."""
    if device.code not in _CUPY_DEVICES:
        return None
    runtime: Any = sys.modules["cupy"].cuda
    with runtime.Device(device.index):
        return int(runtime.get_current_stream().ptr)


register_stream_source("cupy", cupy_stream)
