"""What `fd doctor` shows of an opened device: is it hardware, and which ops run on fused operators."""

from __future__ import annotations

from fd_core.api.device import DeviceInfo
from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_xpu import settings
from fd_xpu.kernels import table


def checks(device: DeviceInfo) -> list[tuple[str, Verdict]]:
    """Rows in the order of the table."""
    rows = [("hardware", hardware(device))]
    fused = [(op, name) for op, row in table().items() for name in row.get("fused", ())]
    return rows + [(f"{op} fused as {name}", is_fused(name, device)) for op, name in fused]


def hardware(device: DeviceInfo) -> Verdict:
    if "stand_in" not in device.features:
        return YES
    fix = "on a machine with the device: unset FD_XPU_PLACE"
    return Verdict.no(ReasonCode.POLICY, "device", "hardware", device.name, fix)


def is_fused(name: str, device: DeviceInfo) -> Verdict:
    """Whether the build registers the operator for the place; if not, the op is a composition."""
    if not settings.use_fused():
        return Verdict.no(ReasonCode.POLICY, name, "FD_XPU_FUSED=1", "FD_XPU_FUSED=0", "unset FD_XPU_FUSED")
    kinds = sorted(word.partition(":")[2] for word in device.features if word.startswith(f"{name}:"))
    if kinds:
        return YES
    have = f"none in paddle {device.extra.get('paddle', '')}: the op is composed"
    want = f"kernels for {device.extra.get('place', device.arch)}"
    return Verdict.no(ReasonCode.FEATURE, name, want, have, "none needed: slower, with the same results")
