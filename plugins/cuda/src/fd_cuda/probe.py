"""What `Platform.probe` finds out, without a device context: each way to have no GPU is its own reason."""

from __future__ import annotations

from pathlib import Path

from fd_core.api.device import DeviceInfo, ProbeReport
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_cuda import driver, library
from fd_cuda.arch import LADDER, device_info, rung

#: What the kernels are built with; the driver must serve this major version. 1000 * major + 10 * minor.
TOOLKIT = 13000
#: CUcomputemode: nobody may compute on the device.
PROHIBITED = 2
_INSTALL = f"install an NVIDIA driver that serves CUDA {TOOLKIT // 1000}"


def probe(nodes: Path = Path("/dev")) -> ProbeReport:
    """Every usable device, or the reasons. Loads the driver's library, creates nothing."""
    verdict = check_driver(nodes)
    if not verdict.ok:
        return ProbeReport(verdict=verdict)
    rows = [describe(index) for index in range(driver.device_count())]
    devices = tuple(info for info, _ in rows if info is not None)
    if devices:
        return ProbeReport(devices, library.verdict())
    return ProbeReport(verdict=Verdict.all(reason for _, reason in rows))


def check_driver(nodes: Path) -> Verdict:
    """Is there a driver that is new enough and sees a device?"""
    try:
        driver.library()
    except OSError as error:
        return _no_library(nodes, error)
    code = driver.library().cuInit(0)
    if code:
        return _no_start(nodes, code)
    version = driver.driver_version()
    if version < TOOLKIT:
        have = f"a driver for CUDA {text(version)}"
        return Verdict.no(ReasonCode.DRIVER, "cuda", f"CUDA {text(TOOLKIT)} or newer", have, _INSTALL)
    return YES


def _no_library(nodes: Path, error: OSError) -> Verdict:
    if device_nodes(nodes):
        fix = "in a container: start it with the NVIDIA container runtime (--gpus all)"
        have = f"{nodes}/nvidia* without the library ({error})"
        return Verdict.no(ReasonCode.DRIVER, "cuda", driver.LIBRARY, have, fix)
    have = f"neither the library nor {nodes}/nvidia*"
    return Verdict.no(ReasonCode.NO_DEVICE, "cuda", "an NVIDIA GPU and its driver", have, _INSTALL)


def _no_start(nodes: Path, code: int) -> Verdict:
    """cuInit refused: no device, a container without its nodes, or a driver in disorder."""
    have = f"cuInit: {driver.error_name(code)} ({driver.error_text(code)})"
    if not device_nodes(nodes):
        fix = "in a container: pass the devices (--gpus all); else check lspci and the kernel module"
        return Verdict.no(ReasonCode.NO_DEVICE, "cuda", f"{nodes}/nvidia*", have, fix)
    if code == driver.NO_DEVICE:
        fix = "check CUDA_VISIBLE_DEVICES and nvidia-smi"
        return Verdict.no(ReasonCode.NO_DEVICE, "cuda", "a visible device", have, fix)
    fix = "check nvidia-smi: the driver's library and kernel module must be of one release"
    return Verdict.no(ReasonCode.DRIVER, "cuda", "a working driver", have, fix)


def device_nodes(nodes: Path) -> bool:
    return any(nodes.glob("nvidia[0-9]*"))


def describe(index: int) -> tuple[DeviceInfo | None, Verdict]:
    """The device's facts, or why it cannot be used."""
    name, sm = driver.device_name(index), driver.capability(index)
    if driver.attribute(driver.COMPUTE_MODE, index) == PROHIBITED:
        fix = "nvidia-smi -c DEFAULT, or another device"
        want = "a device that may compute"
        verdict = Verdict.no(ReasonCode.DEVICE_BUSY, f"cuda:{index}", want, "compute mode PROHIBITED", fix)
        return None, verdict
    try:
        rung(sm)
    except ValueError as error:
        names = f"{LADDER[0].name} to {LADDER[-1].name}"
        return None, Verdict.no(ReasonCode.ARCH, f"cuda:{index} ({name})", names, f"sm_{sm}", str(error))
    units = driver.attribute(driver.PROCESSORS, index)
    version = text(driver.driver_version())
    return device_info(index, name, sm, driver.total_memory(index), units, version), YES


def text(version: int) -> str:
    """13000 -> "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"
