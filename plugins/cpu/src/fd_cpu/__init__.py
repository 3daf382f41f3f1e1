"""fd-cpu: compiled kernels for x86-64 and aarch64 behind fd-core's plug-in interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fd_core.api.hookspecs import hookimpl

if TYPE_CHECKING:
    from fd_core.api.device import DeviceInfo
    from fd_core.api.kernel import Kernel
    from fd_core.api.platform import Platform
    from fd_core.api.quant import QuantMethod
    from fd_core.api.verdict import Verdict


@hookimpl
def fd_platforms() -> list[type[Platform]]:
    from fd_cpu.platform import CPUPlatform

    return [CPUPlatform]


@hookimpl
def fd_kernels(device: DeviceInfo) -> list[Kernel]:
    from fd_cpu.kernels import kernels

    return kernels() if device.device.type == "cpu" else []


@hookimpl
def fd_quant_methods(device: DeviceInfo) -> list[type[QuantMethod]]:
    if device.device.type != "cpu":
        return []
    from fd_cpu.quant import PackedLinear
    from fd_cpu.quant_integer import METHODS

    return [PackedLinear, *METHODS]


@hookimpl
def fd_simulated_devices() -> list[tuple[str, DeviceInfo]]:
    from fd_cpu.platform import simulated_devices

    return simulated_devices()


@hookimpl
def fd_stamp() -> dict[str, Any] | None:
    from fd_cpu.library import stamp

    return stamp()


@hookimpl
def fd_doctor(device: DeviceInfo) -> list[tuple[str, Verdict]]:
    from fd_cpu.library import candidates

    return [(f"isa {level.name}", verdict) for level, verdict in candidates()]
