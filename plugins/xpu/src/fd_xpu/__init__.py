"""fd-xpu: Kunlun XPU for fd-core, through Paddle's operators. Importing it imports no Paddle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fd_core.api.hookspecs import hookimpl

if TYPE_CHECKING:
    from fd_core.api.attention import AttentionBackend
    from fd_core.api.device import DeviceInfo
    from fd_core.api.kernel import Kernel
    from fd_core.api.platform import Platform
    from fd_core.api.quant import QuantMethod
    from fd_core.api.verdict import Verdict

DEVICE_TYPE = "xpu"


@hookimpl
def fd_platforms() -> list[type[Platform]]:
    from fd_xpu.platform import XPUPlatform

    return [XPUPlatform]


@hookimpl
def fd_kernels(device: DeviceInfo) -> list[Kernel]:
    from fd_xpu.kernels import kernels

    return kernels() if device.device.type == DEVICE_TYPE else []


@hookimpl
def fd_attention_backends(device: DeviceInfo) -> list[type[AttentionBackend]]:
    from fd_xpu.attention import PaddleAttention

    return [PaddleAttention] if device.device.type == DEVICE_TYPE else []


@hookimpl
def fd_quant_methods(device: DeviceInfo) -> list[type[QuantMethod]]:
    from fd_xpu.quant import METHODS

    return list(METHODS) if device.device.type == DEVICE_TYPE else []


@hookimpl
def fd_simulated_devices() -> list[tuple[str, DeviceInfo]]:
    from fd_xpu.platform import simulated_devices

    return simulated_devices()


@hookimpl
def fd_stamp() -> dict[str, Any] | None:
    from fd_xpu.kernels import stamp

    return stamp()


@hookimpl
def fd_doctor(device: DeviceInfo) -> list[tuple[str, Verdict]]:
    from fd_xpu.doctor import checks

    return checks(device) if device.device.type == DEVICE_TYPE else []
