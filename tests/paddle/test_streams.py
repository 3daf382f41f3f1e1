"""An op runs on the guest's current stream, on the short way and on the long one, and nobody waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import far_library as far
import numpy as np
import pytest

from fd_core import ops
from fd_core.api.ffi import tvm_ffi
from fd_core.api.tensor import Tensor
from fd_core.host import session as sessions
from fd_core.ops import stream as streams
from fd_core.ops.exchange import exchange

OURS = 0x1234


class Kernel:
    """What `silu` saw: the environment stream of each call."""

    def __init__(self) -> None:
        self.streams: list[int] = []

    def __call__(self, *args: Any) -> None:
        self.streams.append(streams.environment_stream(far.DEVICE))


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture(params=["compiled", "python"])
def session(request: pytest.FixtureRequest, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A compiled target takes the short way from its second call on, a Python one never."""
    target = tvm_ffi().convert(kernel.__call__) if request.param == "compiled" else kernel
    opened = far.session("silu", target)
    monkeypatch.setattr(sessions, "current", opened)
    return opened


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    far.Far.waits.clear()
    far.Old.waits.clear()
    with streams.use_stream(far.DEVICE, 0):
        yield


def x() -> far.Far:
    return far.Far(np.ones((2, 8)))


@pytest.mark.usefixtures("session")
class TestExchangeTable:
    def test_each_call_runs_on_the_stream_of_its_moment(self, kernel: Kernel) -> None:
        out = x()
        for number in (7, 8, 9, 7):
            far.Far.stream = number
            assert ops.silu(x(), out=out) is out
        assert kernel.streams == [7, 8, 9, 7]
        assert far.Far.waits == []

    def test_environment_is_restored(self) -> None:
        far.Far.stream = 5
        with streams.use_stream(far.DEVICE, OURS):
            for _ in range(3):
                ops.silu(x(), out=x())
                assert streams.environment_stream(far.DEVICE) == OURS

    def test_results_come_from_the_librarys_allocator(self, kernel: Kernel) -> None:
        made = far.Far.made
        for far.Far.stream in (3, 4):
            got = ops.silu(x())
            assert type(got) is far.Far
            assert got.view.shape == (2, 8)
        assert far.Far.made - made == 2
        assert kernel.streams == [3, 4]

    def test_its_refusal_is_handed_on_before_the_kernel_runs(self, kernel: Kernel) -> None:
        ops.silu(x())
        for _ in range(2):
            with pytest.raises(MemoryError, match=r"Far: want 416 bytes on far:0, .*: thirteen rows"):
                ops.silu(far.Far(np.ones((13, 8))))
        assert len(kernel.streams) == 1

    def test_our_own_tensors_first(self, kernel: Kernel) -> None:
        far.Far.stream = 11
        for _ in range(2):
            ops.silu(x().view, out=x())
        assert kernel.streams == [11, 11]


@pytest.mark.usefixtures("session")
class TestWithoutTable:
    def old(self) -> far.Old:
        return far.Old(np.ones((2, 8)))

    def test_a_registered_source_is_asked(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "_sources", {})
        streams.register_stream_source("far_library", lambda device: 21)
        ops.silu(self.old(), out=self.old())
        assert kernel.streams == [21]
        assert far.Old.waits == []

    def test_the_tensors_own_protocol(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(far.Old, "__tvm_ffi_env_stream__", lambda self: 31, raising=False)
        ops.silu(self.old(), out=self.old())
        assert kernel.streams == [31]
        assert far.Old.waits == []

    def test_else_the_library_waits_for_the_stream_in_use(self, kernel: Kernel) -> None:
        """DLPack's `stream`: the producer makes that stream wait for its work."""
        with streams.use_stream(far.DEVICE, OURS):
            ops.silu(self.old(), out=self.old())
        assert kernel.streams == [OURS]
        assert far.Old.waits == [OURS, OURS]

    def test_else_its_default(self, kernel: Kernel) -> None:
        ops.silu(self.old(), out=self.old())
        assert kernel.streams == [0]
        assert far.Old.waits == [None, None]


@pytest.mark.usefixtures("session")
def test_without_guests_the_environment_stream_stays(kernel: Kernel) -> None:
    far.Far.stream = 99
    with streams.use_stream(far.DEVICE, OURS):
        for _ in range(2):
            assert isinstance(ops.silu(x().view, out=x().view), Tensor)
    assert kernel.streams == [OURS, OURS]


def test_tensors_that_refuse_assignment_are_never_written() -> None:
    class Fixed(far.Old):
        ndim = 2

        def __getitem__(self, index: object) -> Any:
            return self

        def __setitem__(self, index: object, value: object) -> None:
            raise TypeError("fixed")

    with pytest.raises(
        ValueError, match=r"silu.out: want a tensor that may be written, have Fixed, which nev"
    ):
        ops.silu(np.ones((2, 8), np.float32), out=Fixed(np.ones((2, 8))))


def test_host_tensors_are_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "current_stream", lambda *_: pytest.fail("asked"))
    array = np.ones((2, 8), np.float32)
    assert ops.silu(array).shape == (2, 8)


def test_a_table_of_another_major_version_is_not_read() -> None:
    class Newer(far.Far):
        pass

    table = exchange(far.Far)
    assert table is not None
    assert table.current_stream(far.DEVICE) == far.Far.stream
    assert table.current_stream(sessions.current_session().device.device) is None
    assert exchange(far.Old) is None
    assert exchange(Newer) is not None


class TestCuPy:
    """The source of compat/streams.py, on a stand-in with CuPy's documented calls."""

    def test_current_stream_of_the_tensors_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys
        from types import ModuleType, SimpleNamespace

        from fd_core.api.device import Device
        from fd_core.compat import streams as source

        entered: list[int] = []

        class Guard:
            def __init__(self, index: int) -> None:
                self.index = index

            def __enter__(self) -> None:
                entered.append(self.index)

            def __exit__(self, *_: object) -> None:
                entered.append(-self.index)

        cupy = ModuleType("cupy")
        current = SimpleNamespace(ptr=77)
        cupy.cuda = SimpleNamespace(Device=Guard, get_current_stream=lambda: current)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        assert source.cupy_stream(Device("gpu", 1, 2)) == 77
        assert entered == [1, -1]
        assert source.cupy_stream(far.DEVICE) is None
        array = type("ndarray", (), {"__module__": "cupy._core.core"})()
        assert streams.current_stream(array, Device("gpu", 1, 2)) == 77
