"""Plug-ins made on the fly: a package and its installation record in a folder that goes on sys.path."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fd_core.api.version import PLUGIN_API
from fd_core.host.find import Found

GOOD = """
from fd_core.api.device import HOST, DeviceInfo, ProbeReport
from fd_core.api.hookspecs import hookimpl
from fd_core.api.host_platform import HostPlatform


class Toy(HostPlatform):
    name = "{name}"
    device_type = "cpu"
    priority = 500

    @classmethod
    def probe(cls):
        return ProbeReport((cls().open(0),))

    def open(self, index):
        return DeviceInfo(HOST, "toy", "toy", 0, 1 << 30)


@hookimpl
def fd_platforms():
    return [Toy]
"""

STAMPED = (
    GOOD
    + """

@hookimpl
def fd_stamp():
    return {"digest": "binary"}
"""
)

UNLOADABLE = STAMPED.replace('return {"digest": "binary"}', "raise OSError('undefined symbol: f')")
CRASHING_BINARY = STAMPED.replace(
    'return {"digest": "binary"}', "import ctypes; return ctypes.string_at(0)"
)
RAISES = "raise OSError('libvendor.so.3: cannot open shared object file')"
EXITS = "import sys; sys.exit(7)"
PRINTS = "print('a banner')\n" + GOOD
HANGS = "import time; time.sleep(600)"
SEGFAULTS = "import ctypes; ctypes.string_at(0)"
MISSPELT = GOOD.replace("def fd_platforms", "def fd_plaforms")
WRONG_ARGUMENT = (
    GOOD
    + """

@hookimpl
def fd_kernels(devise):
    return []
"""
)
INCOMPLETE = GOOD.replace("def open(self, index)", "def opened(self)")
NO_DEVICE = GOOD.replace("ProbeReport((cls().open(0),))", "ProbeReport()")
PROBE_RAISES = GOOD.replace(
    "return ProbeReport((cls().open(0),))", "raise RuntimeError('driver 450 is too old')"
)


@dataclass
class Fake:
    """One plug-in `name` whose module is `code`. `manifest` changes the manifest, None leaves it out."""

    name: str
    code: str
    manifest: dict[str, Any] | None = field(default_factory=dict)
    version: str = "1.2.3"

    @property
    def package(self) -> str:
        return f"fd_{self.name}"

    @property
    def distribution(self) -> str:
        return f"fd-{self.name}"

    @property
    def found(self) -> Found:
        return Found(self.name, self.package, self.distribution, self.version)

    def install(self, folder: Path) -> Found:
        package = folder / self.package
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(self.code.replace("{name}", self.name))
        if self.manifest is not None:
            (package / "fd_plugin.json").write_text(json.dumps(self._manifest()))
        record = folder / f"{self.package}-{self.version}.dist-info"
        record.mkdir()
        head = f"Metadata-Version: 2.1\nName: {self.distribution}\nVersion: {self.version}\n"
        (record / "METADATA").write_text(head)
        (record / "entry_points.txt").write_text(f"[fd_core.plugins]\n{self.name} = {self.package}\n")
        return self.found

    def _manifest(self) -> dict[str, Any]:
        api = {"min": list(PLUGIN_API), "max": list(PLUGIN_API)}
        own = {"os": [sys.platform], "arch": [platform.machine()], "platforms": [self.name]}
        base = {"name": self.distribution, "version": self.version, "api": api, **own}
        return {**base, **(self.manifest or {})}
