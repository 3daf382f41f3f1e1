"""What the machine can do at most, measured beside what is compared with it."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import numpy as np
from fd_cpu import library
from fd_cpu.platform import CPUPlatform, processor_name

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec, from_numpy

READ_BYTES = 64 << 20  # of one measurement; the buffer is eight times as long, so caches do not help
FMA_BATCHES = 200


class Ceilings:
    """`read` [bytes/s]: memory read in four streams a thread; `fma` [flop/s]: float32 multiply-adds;
    `dot` [op/s]: products and sums of int8 codes, measured on request. All are the best of all
    measurements since `reset`."""

    def __init__(self) -> None:
        self.buffer = CPUPlatform().empty(TensorSpec((8 * READ_BYTES,), dt.uint8))
        self.buffer.numpy()[...] = 1
        self.sums = from_numpy(np.zeros(16, np.int32))
        self.lanes = np.zeros(1, np.int32)
        self.turn = 0
        self.reset()

    def reset(self) -> None:
        self.read = self.fma = self.dot = 0.0

    def measure(self, repeats: int = 3) -> None:
        for _ in range(repeats):
            self.measure_read()
            self.measure_fma()

    def measure_read(self) -> float:
        """Seconds of one read of READ_BYTES."""
        self.turn = (self.turn + 1) % 8
        part = self.buffer.slice(self.turn * READ_BYTES, (self.turn + 1) * READ_BYTES)
        seconds = self._time(lambda: library.ceiling_read(part, self.sums))
        self.read = max(self.read, READ_BYTES / seconds)
        return seconds

    def measure_fma(self) -> float:
        """Seconds of one run of `fma_flops` operations."""
        seconds = self._time(lambda: library.ceiling_fma(FMA_BATCHES, from_numpy(self.lanes)))
        self.fma = max(self.fma, self.fma_flops / seconds)
        return seconds

    def measure_dot(self) -> float:
        """Seconds of one run of int8 dot products."""
        columns = np.zeros(1, np.int32)
        seconds = self._time(lambda: library.ceiling_dot(FMA_BATCHES, from_numpy(columns)))
        self.dot = max(self.dot, 2 * 12 * 4 * int(columns[0]) * 1024 * FMA_BATCHES / seconds)
        return seconds

    @property
    def fma_flops(self) -> int:
        return 2 * 12 * 1024 * FMA_BATCHES * int(self.lanes[0])

    @staticmethod
    def _time(call: Any) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started


def machine_facts() -> dict[str, Any]:
    """What a reader needs to place the numbers."""
    return {
        "processor": processor_name(),
        "isa": library.chosen()[0],
        "threads": library.thread_count(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "when": time.strftime("%Y-%m-%d"),
    }
