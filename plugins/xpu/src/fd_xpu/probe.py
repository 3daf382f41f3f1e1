"""From facts to a verdict: which XPUs can be used, or why none. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fd_core.api.device import Device, DeviceInfo
from fd_core.api.verdict import ReasonCode, Verdict
from fd_xpu.facts import Facts, Paddle

#: Oldest Paddle whose operators have the signatures that the op table calls.
MIN_PADDLE = "3.3"
#: Oldest kernel driver that Paddle's XPU builds are said to work with (FastDeploy's installation guide).
MIN_DRIVER = "5.0.21.26"
INDEX = "https://www.paddlepaddle.org.cn/packages/stable/xpu-p800/"
INSTALL = f"pip install paddlepaddle-xpu -i {INDEX}"
#: DLPack has no code for this device; 12 is kDLExtDev.
DLPACK_CODE = 12


@dataclass(frozen=True, slots=True)
class Chip:
    """`memory`: bytes of a typical card, for reports about devices that are not there."""

    arch: str
    rank: int
    name: str
    memory: int


LADDER = (
    Chip("r200", 2, "Kunlun R200", 32 << 30),
    Chip("p800", 3, "Kunlun P800", 96 << 30),
)
UNKNOWN = Chip("unknown", 0, "Kunlun XPU of an unknown generation", 0)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a release: "3.3.0rc1" -> (3, 3, 0)."""
    found = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)


def judge(facts: Facts) -> Verdict:
    """YES, or every reason why no XPU can be used. Without a device node nothing else matters."""
    if not facts.nodes:
        fix = "load the driver (lsmod | grep kunlun); in a container: --device /dev/xpu0, ... /dev/xpuctrl"
        return Verdict.no(ReasonCode.NO_DEVICE, "XPU device nodes", "/dev/xpu0", "none", fix)
    return Verdict.all([*_driver(facts), *_software(facts)])


def _driver(facts: Facts) -> Iterator[Verdict]:
    if not facts.control:
        fix = "in a container: --device /dev/xpuctrl; else reload the driver"
        yield Verdict.no(ReasonCode.DRIVER, "XPU control node", "/dev/xpuctrl", "no such node", fix)
    if facts.closed:
        fix = "chmod 666 /dev/xpu*, or join the group that owns them"
        have = f"no access to {', '.join(facts.closed)}"
        yield Verdict.no(ReasonCode.DRIVER, "XPU device nodes", "read and write access", have, fix)
    if facts.driver and numbers(facts.driver) < numbers(MIN_DRIVER):
        fix = "install a newer XRE (driver and firmware) from Kunlunxin"
        yield Verdict.no(ReasonCode.DRIVER, "XPU driver", f">= {MIN_DRIVER}", facts.driver, fix)


def _software(facts: Facts) -> Iterator[Verdict]:
    if not facts.runtime:
        fix = "install XRE (/opt/xre/so), or name its folder in LD_LIBRARY_PATH"
        yield Verdict.no(ReasonCode.NOT_INSTALLED, "XPU runtime", "libxpurt.so", "not found", fix)
    yield judge_paddle(facts.paddle)
    if facts.paddle and not facts.paddle.xre:
        have = f"paddle {facts.paddle.version} built without XPU"
        fix = f"pip uninstall paddlepaddle, then {INSTALL}"
        yield Verdict.no(ReasonCode.NOT_BUILT, "Paddle's XPU build", "a build with XPU", have, fix)


def judge_paddle(paddle: Paddle | None, fix: str = INSTALL) -> Verdict:
    """Is some Paddle there, and new enough?"""
    if paddle is None:
        return Verdict.no(ReasonCode.NOT_INSTALLED, "Paddle", f">= {MIN_PADDLE}", "not installed", fix)
    if paddle.version and numbers(paddle.version) < numbers(MIN_PADDLE):
        return Verdict.no(ReasonCode.ABI, "Paddle", f">= {MIN_PADDLE}", paddle.version, fix)
    return Verdict()


def chip(arch: str) -> Chip:
    return next((one for one in LADDER if one.arch == arch), UNKNOWN)


def devices(facts: Facts, device_type: str) -> tuple[DeviceInfo, ...]:
    """One per device node. The PCI bus names the chips; in a container with fewer nodes than chips the
    first chip speaks for all, which is right wherever a machine has one kind."""
    chips = facts.chips if len(facts.chips) == len(facts.nodes) else facts.chips[:1] * len(facts.nodes)
    chips = chips or (UNKNOWN.arch,) * len(facts.nodes)
    return tuple(_info(chip(arch), i, device_type, facts.driver) for i, arch in enumerate(chips))


def _info(of: Chip, index: int, device_type: str, driver: str) -> DeviceInfo:
    device = Device(device_type, index, DLPACK_CODE)
    return DeviceInfo(device, of.name, of.arch, of.rank, of.memory, driver=driver)
