"""Device memory: blocks of power-of-two-ish sizes, kept after use and given out again.

A freed block is reused at once, but only by the stream it was taken on: that stream's order of work keeps
the new use behind the old one. Who uses a block on other streams too holds it until they have met; what
must not be reused while a copy is under way is held by whoever started the copy. One pool, one device.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from ctypes import byref, c_uint64, c_void_p

from fd_cuda import driver

#: Small requests share granules of this many bytes; large ones are rounded to `_PAGE`.
_GRANULE, _PAGE = 512, 2 << 20


def rounded(nbytes: int) -> int:
    """The size that is allocated for a request, bytes."""
    if nbytes <= _PAGE:
        return max(_GRANULE, 1 << (nbytes - 1).bit_length()) if nbytes else _GRANULE
    return (nbytes + _PAGE - 1) // _PAGE * _PAGE


class Block:
    """Device memory that returns to its pool when nobody refers to it any more."""

    __slots__ = ("_pool", "_stream", "ptr", "size")

    def __init__(self, pool: Pool, ptr: int, size: int, stream: int) -> None:
        self._pool = pool
        self._stream = stream
        self.ptr = ptr
        self.size = size

    def __del__(self) -> None:
        self._pool.give_back(self.ptr, self.size, self._stream)


class Pool:
    """Blocks of one device. The caller has made the device's context current."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a collection may free a block inside any of these methods
        self._free: dict[tuple[int, int], list[int]] = defaultdict(list)  # by size and stream
        self.kept = 0  # bytes that are allocated and free

    def take(self, nbytes: int, stream: int) -> Block:
        """For work on `stream` (raw handle). MemoryError (text: bytes wanted and free) when the device has
        no room, what other streams left included."""
        size = rounded(nbytes)
        with self._lock:
            found = self._free[size, stream]
            if found:
                self.kept -= size
                return Block(self, found.pop(), size, stream)
        return Block(self, self._allocate(size), size, stream)

    def give_back(self, ptr: int, size: int, stream: int) -> None:
        with self._lock:
            self._free[size, stream].append(ptr)
            self.kept += size

    def release(self) -> None:
        """Return everything that is free to the driver (waits for the device)."""
        with self._lock:
            for pointers in self._free.values():
                for ptr in pointers:
                    driver.call("cuMemFree_v2", ptr)
                pointers.clear()
            self.kept = 0

    def _allocate(self, size: int) -> int:
        try:
            return _allocate(size)
        except driver.CudaError as error:
            if error.code != driver.OUT_OF_MEMORY:
                raise
        self.release()
        try:
            return _allocate(size)
        except driver.CudaError as error:
            if error.code != driver.OUT_OF_MEMORY:
                raise
            free, total = driver.memory_info()
            raise MemoryError(
                f"platform 'cuda': want {size} bytes, have {free} free of {total}; use a smaller model, "
                "batch or cache, or free memory that other processes hold"
            ) from error


def _allocate(size: int) -> int:
    ptr = c_uint64()
    driver.call("cuMemAlloc_v2", byref(ptr), size)
    return ptr.value


class Pinned:
    """Page-locked host memory, which the device copies from and to without waiting for the host."""

    __slots__ = ("nbytes", "ptr")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.ptr = driver.handle("cuMemHostAlloc", max(nbytes, 1), 0)

    def __del__(self) -> None:
        driver.library().cuMemFreeHost(c_void_p(self.ptr))
