"""Before a probe: is there anything on this machine that a plug-in's device could not be without?

Names of files are looked up, nothing is loaded. Where in doubt (another system than Linux) there is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from fd_core.api.manifest import Presence
from fd_core.api.verdict import YES, ReasonCode, Verdict

#: Where dynamic loaders look without being told, besides their cache. The interpreter's own RPATH is left
#: out: a driver's library without a device node would find no device.
_FOLDERS = ("lib", "lib64", "usr/lib", "usr/lib64", "usr/local/lib", "lib/*-linux-*", "usr/lib/*-linux-*")
_CACHE = "etc/ld.so.cache"


def check_presence(
    presence: Presence | None, root: Path = Path("/"), variables: Mapping[str, str] = os.environ
) -> Verdict:
    """NO_DEVICE in the plug-in's words if neither its files nor its libraries are there, else YES."""
    if presence is None or sys.platform != "linux" or any(variables.get(name) for name in presence.unless):
        return YES
    if any(any(root.glob(pattern.lstrip("/"))) for pattern in presence.paths):
        return YES
    if any(can_load(name, root, variables) for name in presence.libraries):
        return YES
    return Verdict.no(ReasonCode.NO_DEVICE, presence.subject, presence.want, presence.have, presence.fix)


def can_load(name: str, root: Path, variables: Mapping[str, str]) -> bool:
    """Whether the dynamic loader would find the shared library `name` (whatever is in the file)."""
    if any((folder / name).exists() for folder in _folders(root, variables)):
        return True
    try:
        return f"{name}\0".encode() in (root / _CACHE).read_bytes()
    except OSError:  # musl's loader keeps none
        return False


def _folders(root: Path, variables: Mapping[str, str]) -> Iterator[Path]:
    for folder in variables.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":"):
        yield Path(folder or ".")
    for pattern in _FOLDERS:
        yield from root.glob(pattern)
