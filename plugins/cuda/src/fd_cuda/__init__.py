"""fd-cuda: compiled kernels for NVIDIA GPUs from sm_70 on behind fd-core's plug-in interface."""

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


@hookimpl
def fd_platforms() -> list[type[Platform]]:
    from fd_cuda.platform import CudaPlatform

    return [CudaPlatform]


@hookimpl
def fd_kernels(device: DeviceInfo) -> list[Kernel]:
    from fd_cuda.kernels import kernels

    return kernels(device) if device.device.type == "cuda" else []


@hookimpl
def fd_attention_backends(device: DeviceInfo) -> list[type[AttentionBackend]]:
    if device.device.type != "cuda":
        return []
    from fd_cuda.attention import CudaAttention
    from fd_cuda.flashinfer import FlashInferAttention

    return [CudaAttention, FlashInferAttention]


@hookimpl
def fd_quant_methods(device: DeviceInfo) -> list[type[QuantMethod]]:
    if device.device.type != "cuda":
        return []
    from fd_cuda.quant import METHODS
    from fd_cuda.quant_fp8 import CudaFloat8Linear

    return [*METHODS, CudaFloat8Linear]


@hookimpl
def fd_simulated_devices() -> list[tuple[str, DeviceInfo]]:
    from fd_cuda.arch import simulated_devices

    return simulated_devices()


@hookimpl
def fd_stamp() -> dict[str, Any] | None:
    from fd_cuda.library import stamp

    return stamp()


@hookimpl
def fd_doctor(device: DeviceInfo) -> list[tuple[str, Verdict]]:
    if device.device.type != "cuda":
        return []
    from fd_core.api.verdict import YES, ReasonCode, Verdict
    from fd_cuda.arch import LADDER
    from fd_cuda.library import targets

    have = targets()
    fix = "build fd-cuda with FD_CUDA_ARCHS={}"
    rows = [
        (
            arch,
            Verdict.no(
                ReasonCode.NOT_BUILT,
                arch.name,
                arch.target,
                " ".join(have) or "none",
                fix.format(arch.target),
            ),
        )
        for arch in LADDER
    ]
    return [(f"kernels for {arch.name}", YES if arch.target in have else no) for arch, no in rows]
