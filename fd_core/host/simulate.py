"""Devices that are not there: facts that plug-ins give of their ladders, for reports and selection.

`FD_SIM="NAME:ARCH"` or `"NAME:ARCH,16GiB"`: platform NAME of an installed plug-in on architecture ARCH.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import NoReturn

from fd_core.api.device import DeviceInfo
from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.host.errors import PlatformError
from fd_core.host.plugins import PluginHost

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True, slots=True)
class Wanted:
    """`memory`: bytes, None for what the plug-in says of the architecture."""

    platform: str
    arch: str
    memory: int | None = None


def parse(text: str) -> Wanted:
    """PlatformError for what cannot be read."""
    head, comma, size = text.partition(",")
    platform, colon, arch = head.strip().partition(":")
    number, unit = size.strip()[:-3], size.strip()[-3:]
    if not (platform and colon and arch) or (comma and not (number.isdigit() and unit in UNITS)):
        _refuse(ReasonCode.POLICY, "NAME:ARCH or NAME:ARCH,16GiB", repr(text), "write it like that")
    return Wanted(platform, arch, int(number) * UNITS[unit] if comma else None)


def simulated(host: PluginHost, text: str) -> tuple[str, DeviceInfo]:
    """(platform name, facts). PlatformError if no plug-in describes the platform or the architecture."""
    wanted, offers = parse(text), host.simulated_devices()
    platforms = sorted({name for name, _ in offers})
    ladder = {info.arch: info for name, info in offers if name == wanted.platform}
    if not ladder:
        have = f"{wanted.platform!r}; described are {', '.join(platforms) or 'none'}"
        fix = (
            _near(wanted.platform, platforms) or f"pip install fd-{wanted.platform}, if that is its plug-in"
        )
        _refuse(ReasonCode.NOT_INSTALLED, "a platform that a plug-in describes", have, fix)
    if wanted.arch not in ladder:
        fix = _near(wanted.arch, list(ladder)) or "name one of them"
        _refuse(ReasonCode.ARCH, f"one of {', '.join(ladder)}", repr(wanted.arch), fix)
    info = ladder[wanted.arch]
    memory = info.memory if wanted.memory is None else wanted.memory
    return wanted.platform, replace(info, memory=memory, name=f"{info.name} (simulated)")


def _near(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, 1)
    return f"did you mean {near[0]!r}?" if near else ""


def _refuse(code: ReasonCode, want: str, have: str, fix: str) -> NoReturn:
    verdict = Verdict.no(code, "FD_SIM", want, have, fix)
    raise PlatformError(str(verdict), verdict)
