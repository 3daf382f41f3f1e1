"""Probes that found devices are remembered until the machine restarts or the plug-in changes."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from fd_core import __version__
from fd_core.host.find import Found
from fd_core.host.probe import ProbeResult, from_json


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """`$XDG_CACHE_HOME/fd-core` or `~/.cache/fd-core`; None where there is no home."""
    base = environ.get("XDG_CACHE_HOME", "")
    if base and Path(base).is_absolute():
        return Path(base) / "fd-core"
    home = environ.get("HOME", "")
    return Path(home) / ".cache" / "fd-core" if home else None


def boot_id(file: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Changes with every start of the machine; "" where the system does not say."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def key(found: Found, package: Path, variables: Iterable[str]) -> str:
    """Everything that a probe's answer depends on and that we can see without importing."""
    watched = sorted({*variables, *(name for name in os.environ if name.startswith("FD_"))})
    facts = {
        "plugin": [found.name, found.module, found.distribution, found.version],
        "files": [(str(p), p.stat().st_mtime_ns) for p in _files(package)],
        "host": [__version__, sys.executable, boot_id()],
        "environment": {name: os.environ.get(name) for name in watched},
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _files(package: Path) -> list[Path]:
    return sorted(p for pattern in ("*.*", "lib/*") for p in package.glob(pattern) if p.is_file())


class ProbeCache:
    """One small file per key. Every failure to read or write means "not remembered"."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / "probe" if folder else None

    def get(self, key: str) -> ProbeResult | None:
        if self._folder is None:
            return None
        try:
            return from_json(json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, result: ProbeResult) -> None:
        """Only answers with devices: a failure may be mended before the next start."""
        if self._folder is None or not result.usable:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False, encoding="utf-8") as file:
                json.dump(result.json(), file)
            os.replace(file.name, self._folder / f"{key}.json")
        except OSError:
            return
