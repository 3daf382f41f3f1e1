"""The memory pool over a driver that hands out numbers: no device needed."""

from __future__ import annotations

import itertools
from ctypes import c_uint64
from typing import Any

import pytest
from fd_cuda import driver
from fd_cuda.memory import Pool

from tests.cuda.fake_driver import FakeDriver

MIB = 1 << 20


class Allocator:
    """`room`: bytes that it has. Addresses never repeat, so that reuse shows."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: dict[int, int] = {}
        self._next = itertools.count(1)

    def call(self, name: str, *args: Any) -> None:
        getattr(self, name)(*args)

    def cuMemAlloc_v2(self, out: Any, size: int) -> None:
        if size > self.room:
            raise driver.CudaError("cuMemAlloc_v2", driver.OUT_OF_MEMORY)
        self.room -= size
        address = next(self._next)
        self.sizes[address] = size
        out._obj.value = c_uint64(address).value

    def cuMemFree_v2(self, ptr: int) -> None:
        self.room += self.sizes.pop(ptr)


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    made = Allocator(64 * MIB)
    monkeypatch.setattr(driver, "library", FakeDriver)  # names errors
    monkeypatch.setattr(driver, "call", made.call)
    monkeypatch.setattr(driver, "memory_info", lambda: (made.room, 64 * MIB))
    return made


def test_the_same_stream_uses_a_block_again(allocator: Allocator) -> None:
    pool = Pool()
    first = pool.take(1000, stream=7)
    address = first.ptr
    del first
    assert pool.kept == 1024
    assert pool.take(900, stream=7).ptr == address


def test_another_stream_gets_other_memory(allocator: Allocator) -> None:
    """Work that was queued on the first stream may still use the block."""
    pool = Pool()
    first = pool.take(1000, stream=7)
    address = first.ptr
    del first
    assert pool.take(1000, stream=8).ptr != address


def test_what_other_streams_left_makes_room(allocator: Allocator) -> None:
    pool = Pool()
    held = [pool.take(32 * MIB, stream=n) for n in (7, 8)]
    held.clear()
    assert (allocator.room, pool.kept) == (0, 64 * MIB)
    held.append(pool.take(48 * MIB, stream=9))
    assert (allocator.room, pool.kept) == (16 * MIB, 0)


def test_no_room_names_what_was_wanted_and_found(allocator: Allocator) -> None:
    pool = Pool()
    held = pool.take(48 * MIB, stream=7)
    with pytest.raises(MemoryError, match=rf"want {32 * MIB} bytes, have {16 * MIB} free of {64 * MIB}"):
        pool.take(32 * MIB, stream=7)
    assert held.size == 48 * MIB
