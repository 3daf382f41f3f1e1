"""The interface a device plug-in implements first: find devices, own memory, copy, wait."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fd_core.api.device import DeviceInfo, MemoryInfo, ProbeReport
from fd_core.api.tensor import Tensor, TensorSpec, empty_host

if TYPE_CHECKING:
    import numpy as np

    from fd_core.api.communicator import Communicator, Group


class DeviceError(RuntimeError):
    """The device failed or has gone: raised where the host waits, its text with want, have and fix."""


class Graph(Protocol):
    """A captured sequence of kernel calls over fixed addresses."""

    def replay(self) -> None: ...


class Event(Protocol):
    """A point in the stream; recorded anew as often as wanted."""

    def record(self) -> None:
        """Mark the end of what is queued now."""

    def wait(self) -> None:
        """Return once the device has passed the mark; a DeviceError surfaces here. Nothing recorded: at
        once."""


class Transfers:
    """Copies between host and device that queue behind the kernels, and the memory they need.

    Devices whose features contain "asynchronous" bring their own: there `copy` returns at once and the
    host leaves `src` unchanged, or `dst` unread, until an event recorded afterwards has passed. All
    kernels and copies of a device run in the order in which they were queued. This one, for devices
    whose work is done when a call returns, copies at once.
    """

    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    def pinned(self, spec: TensorSpec) -> Tensor:
        """Uninitialised host memory that the device can read and write by itself."""
        return empty_host(spec)

    def copy(self, dst: Tensor, src: Tensor) -> None:
        """Queue a copy between contiguous tensors of equal shape and dtype, one of them `pinned`, or both
        on the device."""
        dst.copy_from(src)

    def event(self) -> Event:
        """A new event; few are made and all are used again."""
        return _Past()


class _Past:
    """The event of a device that never has anything left to do."""

    def record(self) -> None:
        return None

    def wait(self) -> None:
        return None


class Platform(ABC):
    """One instance per opened device. Nothing may touch the device before `open`.

    `name` is what the user selects (`FD_PLATFORM`); `device_type` names tensors' devices; the
    platform with the highest `priority` whose probe succeeds is the default.
    """

    name: ClassVar[str]
    device_type: ClassVar[str]
    priority: ClassVar[int] = 0

    @classmethod
    @abstractmethod
    def probe(cls) -> ProbeReport:
        """Devices present, or reasons. Cheap, creates no device context; run in a subprocess."""

    @abstractmethod
    def open(self, index: int) -> DeviceInfo:
        """Take device `index` into use."""

    @abstractmethod
    def empty(self, spec: TensorSpec) -> Tensor:
        """Uninitialised device memory. Raises MemoryError naming wanted and free bytes."""

    @abstractmethod
    def from_host(self, array: np.ndarray[Any, Any]) -> Tensor:
        """A device copy of a host array (on the host platform: the same memory)."""

    @abstractmethod
    def to_host(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """A host copy, complete on return (on the host platform: the same memory)."""

    @abstractmethod
    def copy_(self, dst: Tensor, src: Tensor) -> None:
        """Copy between two tensors of equal shape and dtype; either may be in host memory. Runs behind
        the kernels queued so far and is complete on return."""

    @abstractmethod
    def memory(self) -> MemoryInfo:
        """Bytes of the device as the driver or the operating system sees them now."""

    def stream(self) -> int:
        """Raw handle of the stream kernels run on; 0 where the device has none (optional)."""
        return 0

    def synchronize(self) -> None:
        """Wait for everything queued; a DeviceError surfaces here (optional: synchronous)."""
        return None

    def transfers(self) -> Transfers:
        """Copies that do not wait (optional: these wait)."""
        return Transfers(self)

    def capture(self, fn: Callable[[], None]) -> Graph | None:
        """Record `fn` for replay (optional); None means that the device runs eagerly only."""
        return None

    def communicator(self, group: Group) -> Communicator | None:
        """Collectives over `group` (optional); None means that the device works alone."""
        return None
