"""A stand-in for libcuda: the calls of the probe, answered from facts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fd_cuda import driver


@dataclass(frozen=True)
class Gpu:
    name: str = "NVIDIA H200"
    capability: tuple[int, int] = (9, 0)
    memory: int = 141 << 30
    units: int = 132
    compute_mode: int = 0


class FakeDriver:
    """`init`: what cuInit answers; `version`: what the driver serves, as cuDriverGetVersion says it."""

    def __init__(self, *gpus: Gpu, init: int = 0, version: int = 13000) -> None:
        self.gpus = gpus
        self.init = init
        self.version = version

    def __getattr__(self, name: str) -> Callable[..., int]:
        raise AssertionError(f"the probe must not call {name}")

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDriverGetVersion(self, out: Any) -> int:
        return _give(out, self.version)

    def cuDeviceGetCount(self, out: Any) -> int:
        return _give(out, len(self.gpus))

    def cuDeviceGetName(self, text: Any, size: int, index: int) -> int:
        text.value = self.gpus[index].name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, index: int) -> int:
        return _give(out, self.gpus[index].memory)

    def cuDeviceGetAttribute(self, out: Any, which: int, index: int) -> int:
        gpu = self.gpus[index]
        answers = {
            driver.MAJOR: gpu.capability[0],
            driver.MINOR: gpu.capability[1],
            driver.PROCESSORS: gpu.units,
            driver.COMPUTE_MODE: gpu.compute_mode,
        }
        return _give(out, answers[which])

    def cuGetErrorName(self, code: int, out: Any) -> int:
        return _give(out, f"CUDA_ERROR_{code}".encode())

    def cuGetErrorString(self, code: int, out: Any) -> int:
        return _give(out, b"said the stand-in")


def _give(out: Any, value: Any) -> int:
    out._obj.value = value
    return 0
