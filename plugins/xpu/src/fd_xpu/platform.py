"""A Paddle place as a platform, and the Kunlun XPU as one of them.

`PaddlePlatform` serves any place that Paddle computes on. Another device (Paddle's custom devices: npu,
gcu, intel_hpu, iluvatar_gpu, metax_gpu ...) is a subclass that says where to look and which place to use;
kernels, attention and quantisation follow (docs/xpu.md has an example of thirty lines).
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from fd_core.api import dtype as dt
from fd_core.api.device import HOST, Device, DeviceInfo, MemoryInfo, ProbeReport
from fd_core.api.host_platform import host_memory
from fd_core.api.platform import DeviceError, Platform
from fd_core.api.tensor import Tensor, TensorSpec, from_numpy
from fd_xpu import memory, settings
from fd_xpu.facts import find_paddle, gather
from fd_xpu.kernels import PADDLE_TENSORS
from fd_xpu.probe import DLPACK_CODE, LADDER, Chip, devices, judge, judge_paddle

if TYPE_CHECKING:
    import numpy as np

#: Allocations below this are made without asking for free memory first.
SMALL = 1 << 20


class PaddlePlatform(Platform):
    """Tensors are Paddle tensors on one place, calls run on Paddle's current stream.

    `place_type`: the place's name in Paddle ("xpu", "npu", "cpu"). Opening a device makes its place
    Paddle's current one in this process: constants that Paddle's operators make by themselves go there.
    """

    place_type: str = ""

    def __init__(self) -> None:
        self.place: Any = None
        self.device = Device(self.device_type, 0, DLPACK_CODE)

    # -- what a subclass may say differently -------------------------------------------------------------

    def describe(self, index: int) -> DeviceInfo:
        """Facts of the opened device; Paddle is imported. Default: what Paddle tells of the place."""
        if self.on_host:
            return stand_in(self.name, self.device_type)
        props = memory.paddle().device.get_device_properties(self.place)
        info = DeviceInfo(self.device, str(props.name), self.place_type, 0, int(props.total_memory))
        return replace(info, units=int(props.multi_processor_count))

    def memory(self) -> MemoryInfo:
        """Bytes of the device; the default knows what Paddle itself has allocated."""
        if self.on_host:
            return host_memory()
        total = self.describe(self.device.index).memory
        used = int(memory.paddle().device.memory_allocated(self.place))
        return MemoryInfo(total, used, max(0, total - used))

    # -- Platform ------------------------------------------------------------------------------------------

    def open(self, index: int) -> DeviceInfo:
        """Take the place into use and check that views of its memory write through."""
        paddle = memory.paddle()
        name = self.place_type if self.on_host else f"{self.place_type}:{index}"
        self.device = Device(self.device_type, index, HOST.code if self.on_host else DLPACK_CODE)
        self.place = paddle.device.set_device(name)
        check_views(self)
        info = self.describe(index)
        extra = {"paddle": paddle.version.full_version, "place": name, **info.extra}
        words = info.features | fused_features(self.place_type) | {PADDLE_TENSORS}
        return replace(info, device=self.device, features=words, extra=MappingProxyType(extra))

    @property
    def on_host(self) -> bool:
        return self.place_type == "cpu"

    def empty(self, spec: TensorSpec) -> Tensor:
        if spec.nbytes >= SMALL:
            self._refuse_too_much(spec)
        try:
            block = memory.new_block(spec.nbytes, self.place)
        except (MemoryError, RuntimeError) as error:
            raise MemoryError(self._too_much(spec, str(error).strip().splitlines()[-1])) from error
        return memory.tensor_of(block, spec, self.device, self)

    def _refuse_too_much(self, spec: TensorSpec) -> None:
        free = self.memory().free
        if spec.nbytes > free:
            raise MemoryError(self._too_much(spec, f"{free} bytes free"))

    def _too_much(self, spec: TensorSpec, have: str) -> str:
        want = f"want {spec.nbytes} bytes for {list(spec.shape)} {spec.dtype}, have {have}"
        return f"platform {self.name!r}: {want}; use a smaller model, batch or cache"

    def from_host(self, array: np.ndarray[Any, Any]) -> Tensor:
        spec = TensorSpec(tuple(array.shape), dt.dtype(array.dtype.name))
        return memory.tensor_of(memory.upload(array, self.place), spec, self.device, self)

    def to_host(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        return memory.download(tensor)

    def copy_(self, dst: Tensor, src: Tensor) -> None:
        memory.copy(dst, src)

    def stream(self) -> int:
        """Paddle's current stream of the place, where its build tells the handle."""
        if self.on_host:
            return 0
        stream = memory.paddle().device.current_stream(self.place).stream_base
        return int(getattr(stream, "raw_stream", 0) or 0)

    def synchronize(self) -> None:
        if self.on_host:
            return
        try:
            memory.paddle().device.synchronize(self.place)
        except (RuntimeError, OSError) as error:
            fix = "see the driver's log (dmesg), and start the process anew"
            raise DeviceError(f"{self.device}: want its work done, have {error}; fix: {fix}") from error


def check_views(platform: PaddlePlatform) -> None:
    """DeviceError unless writes through views with gaps, from the host and from the device, arrive in the
    block at the bytes that were meant."""
    import numpy as np

    whole = platform.from_host(np.zeros((2, 4), np.int32))
    memory.copy(whole.slice(1, 3, dim=1), from_numpy(np.array([[1, 2], [3, 4]], np.int32)))
    memory.copy(whole.slice(3, 4, dim=1), platform.from_host(np.array([[5], [6]], np.int32)))
    want, have = [[0, 1, 2, 5], [0, 3, 4, 6]], platform.to_host(whole).tolist()
    if have != want:
        fix = "set FLAGS_use_stride_kernel=1, or use another Paddle build"
        text = f"want views that share memory (stride kernels), which give {want}, have {have}"
        raise DeviceError(f"{platform.device}: {text}; fix: {fix}")


def fused_features(place_type: str) -> frozenset[str]:
    """What the build offers of the fused operators that the table knows, as words for DeviceInfo."""
    from fd_xpu.fused import registered

    return frozenset(f"{name}:{kind}" for name, kind in registered(place_type))


class _Priority:
    """Hardware comes before processors; a stand-in is used only where it is asked for by name."""

    def __get__(self, _: object, owner: type) -> int:
        return -50 if settings.stands_in() else 50


class XPUPlatform(PaddlePlatform):
    """Kunlun XPU over Paddle's XPU build; over its CPU place where FD_XPU_PLACE=cpu says so."""

    name: ClassVar[str] = "xpu"
    device_type: ClassVar[str] = "xpu"
    place_type = "xpu"
    priority: ClassVar[int] = cast(int, _Priority())

    def __init__(self) -> None:
        if settings.stands_in():
            self.place_type = "cpu"
        super().__init__()

    @classmethod
    def probe(cls) -> ProbeReport:
        """Files and versions only: Paddle is not imported."""
        if settings.stands_in():
            return probe_stand_in()
        facts = gather()
        verdict = judge(facts)
        return ProbeReport(devices(facts, cls.device_type)) if verdict.ok else ProbeReport(verdict=verdict)

    def open(self, index: int) -> DeviceInfo:
        known = probe_stand_in().devices if self.on_host else devices(gather(), self.device_type)
        if not 0 <= index < len(known):
            raise IndexError(f"platform 'xpu': want a device index below {len(known)}, have {index}")
        return super().open(index)

    def describe(self, index: int) -> DeviceInfo:
        if self.on_host:
            return super().describe(index)
        info = devices(gather(), self.device_type)[index]
        return replace(info, memory=self.memory().total)

    def memory(self) -> MemoryInfo:
        """The runtime's own count, other processes included."""
        if self.on_host:
            return super().memory()
        xpu, index = memory.paddle().device.xpu, self.device.index
        total, used = int(xpu.memory_total(index)), int(xpu.memory_used(index))
        return MemoryInfo(total, used, total - used)


STAND_IN = "stand_in_cpu"


def stand_in(name: str, device_type: str) -> DeviceInfo:
    """Paddle's CPU place in the place of device `name`, called so wherever a device is named."""
    return DeviceInfo(
        device=Device(device_type, 0, HOST.code),
        name=f"Paddle's CPU place standing in for {name}",
        arch=STAND_IN,
        arch_rank=0,
        memory=host_memory().total,
        features=frozenset({"host_memory", PADDLE_TENSORS, "stand_in"}),
        activation_dtype=dt.float32,
        extra=MappingProxyType({"stand_in": f"no {name} is used: speed and faults say nothing of one"}),
    )


def probe_stand_in() -> ProbeReport:
    verdict = judge_paddle(find_paddle(), "pip install paddlepaddle, or unset FD_XPU_PLACE")
    info = stand_in(XPUPlatform.name, XPUPlatform.device_type)
    return ProbeReport((info,)) if verdict.ok else ProbeReport(verdict=verdict)


def simulated_devices() -> list[tuple[str, DeviceInfo]]:
    """Every generation, with the fused operators that Paddle's sources list for it; and the stand-in."""
    return [("xpu", _typical(chip)) for chip in LADDER] + [("xpu", stand_in("xpu", "xpu"))]


def _typical(chip: Chip) -> DeviceInfo:
    from fd_xpu.fused import listed

    words = frozenset(f"{name}:{kind}" for name, kind in listed(chip.arch)) | {PADDLE_TENSORS}
    device = Device("xpu", 0, DLPACK_CODE)
    return DeviceInfo(device, chip.name, chip.arch, chip.rank, chip.memory, features=words)
